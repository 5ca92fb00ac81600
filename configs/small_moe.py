"""A small mixture model, trained so that its routing is not uniform: for the cache of `serving.offload`.

    python -m train.main --config=configs/small_moe.py --workdir=runs/small_moe        5 minutes, 1 core
    python -m serving.offload bench --only=cache --trained=runs/small_moe/model

Four layers of eight experts (two a token), 26 M parameters, on Python's standard library. Expected: a
validation loss below the unigram's; it is made to have habits in its routing, not to write well.
"""

from dataclasses import dataclass, field

from configs.demo import Demo
from mixattn import ModelConfig
from train.experiment import CheckpointConfig, Stage, TrainConfig


def _model() -> ModelConfig:
    return ModelConfig(
        n_layers=4,
        d_model=256,
        n_heads=4,
        n_kv_heads=1,
        head_dim=64,
        d_ff=1024,
        vocab_size=2048,
        n_experts=8,
        experts_per_token=2,
        qk_norm=True,
        tied=True,
        embedding_scale=256**0.5,
    )


def _train() -> TrainConfig:
    stage = Stage(name="small", seconds=240, min_steps=100, max_steps=400, batch_size=4, seq_len=128)
    return TrainConfig(stages=[stage], evaluate_every=100, evaluate_windows=32, must_beat="unigram")


@dataclass
class SmallMixture(Demo):
    model: ModelConfig = field(default_factory=_model)
    train: TrainConfig = field(default_factory=_train)
    checkpoints: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=100))


def get_config() -> SmallMixture:
    return SmallMixture()
