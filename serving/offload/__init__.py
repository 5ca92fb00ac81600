"""Mixture models larger than memory: plan, schedules, simulator, page store (MoE-Lightning, arXiv 2411.11217)."""
