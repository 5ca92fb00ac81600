"""SmolLM2-135M in MixAttention wirings, recovered layer by layer in closed form on a CPU.

    python -m train.experiments.pretrained --config=configs/smollm2_mixattention.py \\
        --workdir=runs/smollm2_mixattention

Needs models/smollm2 (see README). Rows of 256 tokens and windows of 64; the text is Python's standard
library: its language reference and docstrings as prose, its sources as code. One core, minutes per wiring.
`--config=configs/smollm2_mixattention.py:h100` is sized for one H100 and was not run: none was at hand.
"""

from train.experiments.pretrained_setup import PretrainedExperiment

WIRINGS = (
    *("standard", "windows", "sinks", "every_fifth_full", "pairs"),
    *("ma_offset", "ma_pairs", "yoco"),
)


def get_config(variant: str = "") -> PretrainedExperiment:
    config = PretrainedExperiment(wirings=WIRINGS, fit_rows=64, query_rows=16, held_out_rows=32)
    if variant == "h100":  # not run
        config.window, config.row_tok = 512, 2048
        config.fit_rows, config.query_rows, config.held_out_rows = 512, 64, 128
        config.engine_rows, config.engine_tok, config.name = 64, 256, "uptrain_smollm2_h100"
    elif variant == "methods":  # for train.experiments.recovery_methods
        config.wirings, config.name = ("ma_offset",), "uptrain_methods"
    elif variant:
        raise ValueError(f"the variant is {variant!r}; it must be h100, methods, or none")
    return config
