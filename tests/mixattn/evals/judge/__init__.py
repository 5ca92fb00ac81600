"""Tests of `mixattn.evals.judge`."""
