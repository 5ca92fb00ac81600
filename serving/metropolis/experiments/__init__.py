"""Experiments: schedulers on traces, the cost of the controller, and the town on a live engine."""
