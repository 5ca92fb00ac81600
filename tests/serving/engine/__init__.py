"""Tests of `serving.engine`."""
