"""Adaptive speculative decoding: families, caches, arms, rounds."""
