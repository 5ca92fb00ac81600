"""Whole suites of simulated experiments, written to results files."""
