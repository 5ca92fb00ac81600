"""Tests of `mixattn.spec`."""
