"""Continuous batching: the scheduler, the compiled programs, and the engine that joins them."""
