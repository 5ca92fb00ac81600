"""Suites of experiments, and the one table and the pictures that they fill."""
