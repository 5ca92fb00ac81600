"""Tests of `serving.metropolis.schedule`."""
