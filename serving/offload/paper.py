"""The paper's machines, workloads and measured figures, to stand beside simulated ones.

Source: MoE-Lightning (arXiv 2411.11217), tables 2 to 5 and figure 7, whose numbers are in the artifact's
plotting scripts. Figures are tokens a second of prefill and decode together, measured; FlexGen, FlexGen(c),
DeepSpeed and MoE-Lightning(p) pad prompts to the longest, MoE-Lightning does not. Mixtral 8x7B on one T4 (S1)
and one L4 (S2), 8x22B on two (S6) and four (S7) T4. The paper has no S3 to S5.
"""

from typing import NamedTuple

MEAN_TOK, MAX_TOK = 77, 418  # prompts of MTBench
GENERATE = (32, 64, 128, 256)


class PaperSetting(NamedTuple):
    """Names of a model in `shapes` and a machine in `hardware`."""

    model: str
    hardware: str


SETTINGS: dict[str, PaperSetting] = {
    "S1": PaperSetting("mixtral-8x7b", "t4"),
    "S2": PaperSetting("mixtral-8x7b", "l4"),
    "S6": PaperSetting("mixtral-8x22b", "2xt4"),
    "S7": PaperSetting("mixtral-8x22b", "4xt4"),
}

# Figure 7: setting -> system -> tokens/s at 32, 64, 128 and 256 generated tokens.
MEASURED: dict[str, dict[str, tuple[float, ...]]] = {
    "S1": {
        "FlexGen": (12.1, 12.3, 9.5, 9.6),
        "FlexGen(c)": (9.8, 9.4, 7.2, 6.8),
        "DeepSpeed": (7.1, 7.6, 7.8, 6.7),
        "MoE-Lightning(p)": (15.6, 24.0, 30.1, 33.9),
        "MoE-Lightning": (63.0, 101.3, 97.7, 96.7),
    },
    "S2": {
        "FlexGen": (29.2, 34.9, 37.2, 28.8),
        "FlexGen(c)": (17.5, 18.9, 20.0, 15.9),
        "DeepSpeed": (12.7, 13.3, 12.1, 11.8),
        "MoE-Lightning(p)": (53.7, 67.4, 79.0, 78.6),
        "MoE-Lightning": (203.0, 294.5, 217.5, 167.9),
    },
    "S6": {
        "FlexGen": (4.25, 4.4, 4.77, 3.66),
        "FlexGen(c)": (2.7, 2.86, 3.44, 3.09),
        "DeepSpeed": (0.56, 0.59, 0.61, 0.62),
        "MoE-Lightning(p)": (5.38, 7.33, 7.75, 9.13),
    },
    "S7": {
        "FlexGen": (4.97, 5.31, 4.36, 2.96),
        "FlexGen(c)": (1.78, 0.97, 1.02, 0.67),
        "DeepSpeed": (0.9, 1.0, 1.2, 1.3),
        "MoE-Lightning(p)": (14.9, 22.4, 26.2, 25.8),
    },
}


def measured(setting: str, system: str, generate_tok: int) -> float | None:
    """The paper's tokens/s; None where it has none."""
    row = MEASURED.get(setting, {}).get(system)
    return row[GENERATE.index(generate_tok)] if row and generate_tok in GENERATE else None
