"""MoE-Lightning's settings (arXiv 2411.11217, figure 7) in virtual time, the paper's measured ratios beside.

  python -m serving.simulate --config=configs/moe_lightning.py       8x7B on one T4 and one L4; seconds
  python -m serving.simulate --config=configs/moe_lightning.py:all   and 8x22B on two and four T4
  python -m serving.simulate --config=configs/moe_lightning.py --config.gantt=gantt.svg
  python -m serving.simulate --config=configs/moe_lightning.py:all --config.out=results/moe_lightning.csv

No weights are needed. Expected: s1 (CGOPipe) is fastest everywhere, by 1.2 to 2 over s2 to s4 with the same
policy; the absolute rates are several times the paper's, since durations come from peak rates. The paper's
10.3x compares unpadded with padded prompts; beside it stands the ratio with both padded.
"""

from serving.offload.experiment import OffloadExperiment

VARIANTS = ("main", "all")


def get_config(variant: str = "main") -> OffloadExperiment:
    if variant not in VARIANTS:
        raise ValueError(f"unknown experiment {variant!r}; known: {', '.join(VARIANTS)}")
    return OffloadExperiment(("S1", "S2") if variant == "main" else ("S1", "S2", "S6", "S7"))
