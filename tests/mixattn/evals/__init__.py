"""Tests of `mixattn.evals`."""
