"""Tests of mixattn."""
