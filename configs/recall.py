"""Key-value recall beyond the window: nine wirings, three seeds, and the paper's 24 layers.

    python -m train.experiments.recall --config=configs/recall.py --workdir=runs/recall --workers=4
    python -m train.experiments.recall --config=configs/recall.py:deep --workdir=runs/deep --workers=4

Takes about 75 minutes of one core in total (20 minutes on four), and `deep` 30 more, on an idle machine.

Twelve layers with windows of 3 reach 12 * 2 + 1 = 25 tokens back by relaying; rows are 48 tokens long.
Expected and found: wirings whose full layers read deep K/V (standard, offset, pairs, noshare) recall
everywhere. Wirings whose only full K/V are the first layer's (ma, ma_endslide), or that have none (swa),
recall nothing beyond 25 in 900 steps, unless the first layer's keys also see the previous token
(ma+previous). Unlike in the paper, noshare_1, whose one full layer is early, succeeds. One seed of standard
ends at 0.94 beyond 25, because it leaves the plateau late. results/recall.csv has every run. With the
paper's 24 layers and exact wiring strings (windows of 2, results/recall_deep.csv, one seed), both
SlideShare forms recall and ma does not.

The head has one column per value and starts at half the usual size. A head over the whole vocabulary spends
the warm-up on learning which tokens can be answers, and ma_pairs then stays on the plateau of guessing.
"""

from mixattn import ModelConfig
from train.experiments.recall import RecallExperiment
from train.experiments.recall_task import RecallTask
from train.optimizer import OptimizerConfig


def get_config(variant: str = "") -> RecallExperiment:
    """Returns the whole comparison; "short" is two variants, one seed, 250 steps; "deep" has 24 layers.

    Raises:
      ValueError: there is no such variant.
    """
    comparison = RecallExperiment(
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
        task=RecallTask(pairs=16, keys=32, values=32),
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
