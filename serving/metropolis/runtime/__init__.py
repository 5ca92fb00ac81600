"""Runs agents: the controller, model servers, stores, audit and replay page."""
