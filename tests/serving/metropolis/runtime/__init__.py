"""Tests of `serving.metropolis.runtime`."""
