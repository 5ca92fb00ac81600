"""Mixture models larger than memory: plan, schedules, simulator, page store (MoE-Lightning, 2411.11217)."""
