"""Cluster routers, which choose the worker of a request: D2LPM, Preble and baselines."""
