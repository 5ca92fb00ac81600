"""Tests of serving/fair."""
