"""Exact replay: traces of the target's paths, latency profiles, what every arm would have done, and the bound."""
