"""Tests of `serving.metropolis.town`."""
