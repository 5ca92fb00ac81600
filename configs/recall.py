"""Key-value recall beyond the window: nine wirings, three seeds, and the paper's 24 layers.

    python -m train.experiments.recall --config=configs/recall.py --workdir=runs/recall --workers=4
    python -m train.experiments.recall --config=configs/recall.py:deep --workdir=runs/deep --workers=4

About 75 minutes of one core in all (20 minutes on four), and 30 more for `deep`, where nothing else runs.

Twelve layers with windows of 3 reach 12 * 2 + 1 = 25 tokens back by relaying; rows are 48 tokens long.
Expected and found: wirings whose full layers read deep K/V (standard, offset, pairs, noshare) recall
everywhere; those whose only full K/V are the first layer's (ma, ma_endslide) or that have none (swa) recall
nothing beyond 25 in 900 steps, unless the first layer's keys are given the token before (ma+previous).
Not as in the paper: noshare_1, whose one full layer is early, succeeds. One seed of standard ends at 0.94
beyond 25: it leaves the plateau late. results/recall.csv has every run. The same at the paper's 24 layers and
exact strings (windows of 2, results/recall_deep.csv, one seed): both SlideShare forms recall, ma does not.

The head has one column a value and starts at half the usual size. A head over the whole vocabulary spends the
warm-up on learning which tokens are answers at all, and ma_pairs then stays on the plateau of guessing.
"""

from mixattn import ModelConfig
from train.experiments.recall import Comparison
from train.experiments.recall_task import Task
from train.optimizer import Optimizer


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
