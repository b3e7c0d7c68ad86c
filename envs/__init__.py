"""Gymnasium environments: importing ``dispatch_rl`` registers them."""
