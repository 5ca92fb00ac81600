"""Tests of `serving.metropolis.worlds`."""
