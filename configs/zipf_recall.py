"""Recall with heavy hitters: a MixAttention model whose one full owner is cut, and every eviction policy.

    python -m train.experiments.zipf_recall --config=configs/zipf_recall.py --workdir=runs/zipf_recall

Six layers in the wiring `ma_offset` of configs/recall.py, which learns recall fastest: windows of 3 join a
key and its value, and two layers read the one full owner, so that `owner_only` and `all_consumers` differ.
Rows of 192 tokens hold 16 pairs; the prompt is 128 of them, so that a fifth is 25 keys: 4 sinks, 12 recent
and 9 that a scorer chooses. `fast` is a few steps and only shows that it works.
"""

from mixattn import ModelConfig
from train.experiments.zipf_recall import ZipfExperiment
from train.experiments.zipf_task import ZipfTask
from train.optimizer import OptimizerConfig

SCORERS = (
    *("h2o", "h2o+always", "h2o+owner_only", "h2o+prompt", "h2o+one_recent", "h2o_mean"),
    *("snapkv", "tova", "streaming", "knorm", "keydiff", "expected", "random", "recent"),
)


def get_config(variant: str = "") -> ZipfExperiment:
    """Returns the experiment; "fast" is small.

    Raises:
      ValueError: there is no such variant.
    """
    if variant not in ("", "fast"):
        raise ValueError(f"configs/zipf_recall.py has no variant {variant!r}; it has the whole and :fast")
    experiment = ZipfExperiment(
        task=ZipfTask(pairs=16, keys=32, values=32, noise=16, told=96, length=192, ask=0.4, exponent=1.0),
        model=ModelConfig(
            n_layers=6,
            d_model=64,
            n_heads=4,
            n_kv_heads=2,
            head_dim=16,
            d_ff=128,
            vocab_size=80,
            kv_wiring="ma_offset",
            window=3,
            activation="gelu",
            gated=False,
            qk_norm=True,
            # The gain on normed queries and keys starts at 1.5 instead of 1.
            attention_scale=1.5 * 16**-0.5,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=3e-3,
            beta1=0.9,
            beta2=0.99,
            schedule="wsd",
            warmup=50,
            final_lr_ratio=0.0,
            decay_share=0.3,
            clip=1.0,
        ),
        scorers=SCORERS,
        budgets=("0.1", "0.2", "0.5"),
    )
    if variant == "fast":
        experiment.steps, experiment.rows, experiment.name = 20, 8, "zipf_recall_fast"
        experiment.scorers, experiment.budgets = ("h2o", "random"), ("0.2",)
    return experiment
