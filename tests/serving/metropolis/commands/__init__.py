"""Tests of `serving.metropolis.commands`."""
