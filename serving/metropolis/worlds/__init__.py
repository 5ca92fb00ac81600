"""Worlds besides the town: recorded traces, synthetic days and a social network."""
