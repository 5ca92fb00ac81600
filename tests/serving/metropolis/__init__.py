"""Tests of serving/metropolis."""
