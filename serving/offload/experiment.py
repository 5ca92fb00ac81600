"""Simulates the paper's settings with every schedule and puts the ratios beside the paper's.

Everything here is modelled: durations from peak rates, decode only. The paper measured prefill and decode of
real runs, and each system chose its own policy, while FlexGen's schedules run here with the policy planned
for padded CGOPipe. So only the order and the rough size of ratios can agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.offload import durations, paper
from serving.offload.hardware import hardware
from serving.offload.plan import OffloadPlanner, OffloadPolicy, OffloadWorkload
from serving.offload.schedule import LaneTask, emit
from serving.offload.search import search
from serving.offload.shapes import MixtureShape, named_model

# The paper's system whose schedule each of ours is; all of these pad.
PADDED = {"s3": "FlexGen(c)", "s4": "FlexGen", "zero": "DeepSpeed"}


@dataclass
class OffloadExperiment:
    """Attributes:
    settings: names of the paper's settings.
    generate_tok: generated tokens per request.
    gantt: PNG or SVG to draw the schedules of the first setting into; "" = none.
    out: CSV to write the rows into; "" = none.
    """

    settings: tuple[str, ...] = ("S1", "S2")
    generate_tok: tuple[int, ...] = paper.GENERATE
    gantt: str = ""
    out: str = ""

    def check(self) -> None:
        """Raises ValueError for settings the paper does not have, and without anything to run."""
        if unknown := [name for name in self.settings if name not in paper.SETTINGS]:
            raise ValueError(f"unknown setting {unknown[0]!r}; the paper has {', '.join(paper.SETTINGS)}")
        if not self.settings or not self.generate_tok:
            raise ValueError(
                f"{len(self.settings)} settings and {len(self.generate_tok)} lengths leave nothing to run"
            )
        if self.gantt and Path(self.gantt).suffix not in (".png", ".svg"):
            raise ValueError(f"gantt is {self.gantt!r}; it must end in .png or .svg")


def planner_of(setting: str, generate_tok: int, *, padded: bool) -> OffloadPlanner:
    """The planner of one of the paper's settings on its MTBench workload."""
    names = paper.SETTINGS[setting]
    prompt = paper.MAX_TOK if padded else paper.MEAN_TOK
    return OffloadPlanner(
        MixtureShape(named_model(names.model)),
        hardware(names.hardware),
        OffloadWorkload(prompt, generate_tok),
    )


def simulate_settings(
    experiment: OffloadExperiment, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """One row per setting and generated length."""
    cases = [(setting, n) for setting in experiment.settings for n in experiment.generate_tok]
    rows = []
    for done, (setting, generate_tok) in enumerate(cases):
        on_progress(done, len(cases))
        rows.append(_row(setting, generate_tok))
    on_progress(len(cases), len(cases))
    return rows


def _row(setting: str, generate_tok: int) -> dict[str, Any]:
    padded = planner_of(setting, generate_tok, padded=True)
    policy = search(padded).policy
    rates = {name: _rate(padded, policy, name) for name in ("s1", "s2", "s3", "s4")}
    streaming = search(padded, device_attention=True, max_micro_batches=1).policy
    rates["zero"] = _rate(padded, streaming, "zero")
    unpadded = planner_of(setting, generate_tok, padded=False)
    free = search(unpadded)
    rates["s1 unpadded"] = _rate(unpadded, free.policy, "s1")
    row: dict[str, Any] = {"setting": setting, "generate_tok": generate_tok, "batch_padded": policy.batch}
    row["batch_unpadded"] = free.policy.batch
    row["roofline_unpadded_tok_per_s"] = free.tokens_per_s
    row |= {f"{name.replace(' ', '_')}_tok_per_s": rate for name, rate in rates.items()}
    ours = paper.measured(setting, "MoE-Lightning(p)", generate_tok)
    for name, system in PADDED.items():
        row[f"s1_over_{name}_padded"] = rates["s1"] / rates[name]
        row[f"paper_over_{name}_padded"] = _ratio(ours, paper.measured(setting, system, generate_tok))
    row["s1_unpadded_over_s4_padded"] = rates["s1 unpadded"] / rates["s4"]
    free_paper = paper.measured(setting, "MoE-Lightning", generate_tok)
    row["paper_unpadded_over_s4_padded"] = _ratio(
        free_paper, paper.measured(setting, "FlexGen", generate_tok)
    )
    row["simulated_over_paper_unpadded"] = _ratio(rates["s1 unpadded"], free_paper)
    return row


def _rate(planner: OffloadPlanner, policy: OffloadPolicy, schedule: str) -> float:
    return durations.simulated_tokens_per_s(planner, policy, schedule)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def schedules(planner: OffloadPlanner, policy: OffloadPolicy, *, layers: int) -> dict[str, list[LaneTask]]:
    """Tasks of s1 to s4 over a few layers, for a picture."""
    seconds = durations.task_seconds(planner, policy)
    m = policy.micro_batches
    return {
        name: emit(name, layers=layers, micro_batches=m, seconds=seconds) for name in ("s1", "s2", "s3", "s4")
    }
