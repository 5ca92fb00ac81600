"""The shape of the MixAttention paper: 24 layers, 5.21 B parameters, 1.64 B active, and its three stages.

    python -m mixattn.params --config=configs/paper_5b.py                        counts; allocates nothing
    python -m mixattn.params --config=configs/paper_5b.py:ma_offset              with any pattern's name
    python -m train.main --config=configs/paper_5b.py:ma_pairs --workdir=DIR     on a cluster, with a corpus

Stated in the paper (arXiv 2409.15012, sections 3 and 4.1): 24 layers, 12 query and 3 key/value heads,
window 1,024, both parameter counts, and the stages. **Derived, a best guess**: width 1,536, head size 128,
16 experts with 4 per token, expert width 2,688, vocabulary 100,352, an untied head; together they reproduce
both counts to the last printed digit. Optimizer, learning rate and batch size are not published; the values
here are ours.

Expected of the first command: 5,206,844,928 parameters, 1,639,589,376 active, 9.7 GiB.
"""

from dataclasses import dataclass, field

from mixattn import ModelConfig
from train.data import DataConfig
from train.experiment import Stage, TrainConfig, TrainingExperiment


def model(pattern: str = "standard") -> ModelConfig:
    return ModelConfig(
        n_layers=24,
        d_model=1536,
        n_heads=12,
        n_kv_heads=3,
        head_dim=128,
        d_ff=2688,
        vocab_size=100_352,
        kv_wiring=pattern,
        window=1024,
        rope_theta=5e5,
        n_experts=16,
        experts_per_token=4,
        dtype="bfloat16",
    )


def stages() -> list[Stage]:
    long = {"seq_len": 32_768, "rope_theta": 8e6, "trainable": "attention", "batch_size": 96}
    return [
        Stage(name="pretrain", tokens=101_000_000_000, seq_len=4096, rope_theta=5e5, batch_size=768),
        Stage(name="extend", tokens=9_000_000_000, **long),
        Stage(name="long_qa", tokens=500_000_000, **long),
    ]


@dataclass
class Paper(TrainingExperiment):
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=model)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(stages=stages()))


def get_config(pattern: str = "standard") -> Paper:
    return Paper(model=model(pattern))
