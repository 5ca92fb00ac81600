"""Runs agents: the controller, model servers, commit logs, their audit and replay page."""
