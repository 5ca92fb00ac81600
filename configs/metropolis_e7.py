"""E7: the town on our own engine, live, with a tiny random model: equality with lock-step, wall-clock gain.

    python -m serving.metropolis live --config=configs/metropolis_e7.py            a few minutes on a CPU

Twelve residents, bytes as tokens, greedy decoding. Every mode must end with the same story.
"""

from serving.metropolis.experiments.live import LiveTownConfig


def get_config() -> LiveTownConfig:
    return LiveTownConfig()
