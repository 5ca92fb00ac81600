"""Serving in virtual time: the engine's scheduler, policies and prefix cache, with a cost model for a
device."""
