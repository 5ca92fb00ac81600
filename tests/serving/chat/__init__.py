"""Tests of `serving.chat`."""
