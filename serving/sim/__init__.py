"""Serving in virtual time: the engine's scheduler, policies and prefix cache on a simulated device.

A cost model (`cost`) replaces the device, and token counts or synthetic tokens replace real prompts.
"""
