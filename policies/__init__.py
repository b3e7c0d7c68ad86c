"""Dispatch policies: features in, arm out."""
