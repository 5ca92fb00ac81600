"""Tests of `serving.offline`."""
