"""Tests of `serving.kvcache`."""
