"""The three training stages of the MixAttention paper (arXiv 2409.15012, section 4.1).

    python -m train.main --config=configs/paper_stages.py --workdir=DIR --config.data.path=TOKENS ...
    python -m train.main --config=configs/paper_stages.py:small --workdir=runs/stages      about a minute

1. pretrain: 101 B tokens in rows of 4k, RoPE base 0.5 M.
2. extend: 9 B tokens in rows of 32k, RoPE base 8 M; trains attention only.
3. questions: 0.5 B tokens of long documents with questions at their end, loss on the answers only (a .jsonl
   of prompts and answers); trains attention only.

The paper gives stages, window, heads and layers. Width, experts, batch and optimizer are our guesses; width
and experts reproduce its 1.64 B active and 5.21 B total parameters. It needs a cluster and has not been
run. "small" runs the same three stages on a laptop, with arithmetic as questions. It exercises the code;
its loss says nothing about the paper.
"""

import json
from pathlib import Path

from mixattn import ModelConfig
from train.data import DataConfig
from train.experiment import CheckpointConfig, Stage, TrainConfig, TrainingExperiment
from train.mesh import MeshShape
from train.optimizer import OptimizerConfig
from train.step import ComputeConfig


def get_config(variant: str = "") -> TrainingExperiment:
    """Returns the paper's recipe, or "small".

    Raises:
      ValueError: there is no such variant.
    """
    match variant:
        case "":
            return _paper()
        case "small":
            return _small()
    raise ValueError(f"configs/paper_stages.py has no variant {variant!r}; it has the paper's and :small")


def _paper() -> TrainingExperiment:
    model = ModelConfig(
        n_layers=24,
        d_model=1536,
        n_heads=12,
        n_kv_heads=3,
        head_dim=128,
        d_ff=2688,
        vocab_size=100_352,
        kv_wiring="ma_offset",
        window=1024,
        rope_theta=5e5,
        n_experts=16,
        experts_per_token=4,
    )
    long = {"seq_len": 32_768, "batch_size": 128, "rope_theta": 8e6, "trainable": "attention"}
    stages = [
        Stage(name="pretrain", tokens=101_000_000_000, seq_len=4096, batch_size=1024),
        Stage(name="extend", tokens=9_000_000_000, **long),
        Stage(name="questions", tokens=500_000_000, path="data/long_questions.jsonl", **long),
    ]
    return TrainingExperiment(
        data=DataConfig(path="data/pretrain"),
        model=model,
        train=TrainConfig(
            stages=stages,
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=3e-4, schedule="cosine", warmup=2000, clip=1.0, weight_decay=0.1
            ),
            compute=ComputeConfig(dtype="bfloat16", remat="weights", accumulate=4),
            evaluate_every=1000,
        ),
        mesh=MeshShape(fsdp=8),
        checkpoints=CheckpointConfig(every=1000),
    )


def _small() -> TrainingExperiment:
    experiment = _paper()
    experiment.data = DataConfig(limit_bytes=1_000_000)
    experiment.model = ModelConfig(
        n_layers=4,
        d_model=64,
        n_heads=4,
        n_kv_heads=1,
        head_dim=16,
        d_ff=64,
        vocab_size=1024,
        kv_wiring="ma_offset",
        window=16,
        rope_theta=1e4,
        qk_norm=True,
        n_experts=4,
        experts_per_token=2,
    )
    long = {"seq_len": 256, "batch_size": 2, "rope_theta": 1e5, "trainable": "attention"}
    experiment.train = TrainConfig(
        stages=[
            Stage(name="pretrain", steps=60, seq_len=64, batch_size=8),
            Stage(name="extend", steps=20, **long),
            Stage(name="questions", steps=20, path=str(_questions()), **long),
        ],
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=3e-3, schedule="cosine", warmup=10, clip=1.0, weight_decay=0.1
        ),
        compute=ComputeConfig(accumulate=2),
        evaluate_every=20,
        evaluate_windows=8,
    )
    experiment.mesh, experiment.checkpoints = MeshShape(), CheckpointConfig(every=25)
    return experiment


def _questions() -> Path:
    """Writes 1,800 sums as prompts and answers, unless they exist; returns their path."""
    path = Path("runs/sums.jsonl")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        sums = [
            {"prompt": f"{a} + {b} =", "answer": f" {a + b}\n"} for a in range(60) for b in range(0, 60, 2)
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in sums))
    return path
