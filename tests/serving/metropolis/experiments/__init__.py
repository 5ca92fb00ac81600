"""Tests of `serving.metropolis.experiments`."""
