"""Tests of `mixattn.cache`."""
