"""Kernels of the inner loops: one folder per op."""
