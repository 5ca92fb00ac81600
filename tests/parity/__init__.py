"""Parity with transformers, which is installed in a separate environment (`make parity`)."""
