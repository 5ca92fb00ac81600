"""Tests of `mixattn.tools`."""
