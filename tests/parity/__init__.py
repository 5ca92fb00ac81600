"""Parity with transformers, which lives in an environment of its own (`make parity`)."""
