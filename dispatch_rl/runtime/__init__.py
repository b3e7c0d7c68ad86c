"""Exported policies at work: bundles, a decoder, and transformers' ``generate``."""
