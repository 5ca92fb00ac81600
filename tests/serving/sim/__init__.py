"""Tests of serving/sim."""
