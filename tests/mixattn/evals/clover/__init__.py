"""Tests of mixattn.evals.clover."""
