"""Worlds besides the town: recorded traces, synthetic days, a social network."""
