"""A run of a few seconds, for tests: two layers, 300 tokens, a sample of the standard library.

As a user runs it: `python -m train.main --config=tests/train/tiny.py --workdir=...`.
"""

import os
from typing import Any

from mixattn import ModelConfig
from train.data import DataConfig
from train.experiment import CheckpointConfig, Stage, TrainConfig, TrainingExperiment
from train.optimizer import OptimizerConfig


def get_config() -> TrainingExperiment:
    return TrainingExperiment(
        data=DataConfig(limit_bytes=400_000),
        model=ModelConfig(
            n_layers=2,
            d_model=32,
            n_heads=2,
            n_kv_heads=1,
            head_dim=16,
            d_ff=64,
            vocab_size=300,
            kv_wiring="0s_1",
            window=8,
            tied=True,
        ),
        train=TrainConfig(
            stages=[Stage(name="tiny", steps=300, batch_size=2, seq_len=32)],
            optimizer=OptimizerConfig(name="adamw", learning_rate=0.01, warmup=10),
            evaluate_every=50,
            evaluate_windows=8,
        ),
        checkpoints=CheckpointConfig(every=20),
    )


def report_process(variant: str, seed: int) -> dict[str, Any]:
    """A task for sweeps: returns the process and cores it ran on."""
    return {"process": os.getpid(), "cores_seen": sorted(os.sched_getaffinity(0))}
