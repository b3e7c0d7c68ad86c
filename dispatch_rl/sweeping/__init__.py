"""Sweeps in W&B's file format, run without W&B."""
