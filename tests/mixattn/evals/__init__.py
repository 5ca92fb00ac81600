"""Tests of mixattn/evals."""
