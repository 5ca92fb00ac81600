"""Decides which agents may run: distance rules, spaces, the dependency graph. No clock, no jax."""
