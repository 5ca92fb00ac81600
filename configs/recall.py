"""MixAttention in miniature: recall beyond the window, nine wirings, three seeds.

    python -m train.variants --config=configs/recall.py --workdir=runs/recall       about an hour on one core

Twelve layers with windows of 3 reach 12 * 2 + 1 = 25 tokens back by relaying; rows are 48 tokens long.
Expected and found: wirings whose full layers read deep K/V (standard, offset, noshare) recall everywhere;
those whose only full K/V are the first layer's (ma, ma_endslide) or that have none (swa) fail beyond 25,
unless the first layer's keys are given the token before (ma+previous).
Expected and not found: ma_pairs stays on the plateau of guessing among the values it has seen, for all 900
steps, where the paper has it among the best. results/recall.csv says which runs are finished.
"""

from mixattn import ModelConfig
from train.optimizer import Optimizer
from train.recall import Task
from train.variants import Comparison


def get_config(variant: str = "") -> Comparison:
    """The whole comparison; "short" is two variants, one seed and 250 steps; "deep" the paper's 24 layers."""
    comparison = Comparison(
        variants=(
            "ma_offset",
            "ma_pairs",
            "ma_noshare_1",
            "ma_noshare_2",
            "ma+previous",
            "ma",
            "standard",
            "swa",
            "ma_endslide",
        ),
        seeds=(0, 1, 2),
        task=Task(pairs=16, keys=32, values=32),
        model=ModelConfig(
            n_layers=12,
            d_model=64,
            n_heads=4,
            n_kv_heads=2,
            head_dim=16,
            d_ff=128,
            vocab_size=64,
            window=3,
            activation="gelu",
            gated=False,
            qk_norm=True,
            # The gain on normed queries and keys starts at 1.5 instead of 1.
            attention_scale=1.5 * 16**-0.5,
        ),
        head_size=0.5,
        optimizer=Optimizer(
            rule="adamw",
            rate=3e-3,
            beta1=0.9,
            beta2=0.99,
            schedule="wsd",
            warmup=50,
            final=0.0,
            decay_share=0.3,
            clip=1.0,
        ),
        steps=900,
        batch_size=64,
    )
    match variant:
        case "":
            pass
        case "short":
            comparison.variants, comparison.seeds, comparison.steps = ("ma_offset", "ma"), (0,), 250
        case "deep":
            comparison.name = "recall_deep"
            comparison.model.n_layers, comparison.model.window, comparison.steps = 24, 2, 400
            comparison.variants = (
                "ma",
                "ma_offset",
                "ma_offset_slideshare",
                "ma_pairs",
                "ma_pairs_slideshare",
            )
        case _:
            raise ValueError(
                f"configs/recall.py has no variant {variant!r}; it has the whole comparison, :short and :deep"
            )
    return comparison
