"""Experiments: schedulers on traces, the controller's cost, the town on a live engine."""
