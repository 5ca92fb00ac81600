"""Plots of language modelling: loss against KV bytes, and loss by step after several initializations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixattn.tools import files

_HEADROOM = 0.4  # nats shown above the dense model's loss
_COLOURS = plt.get_cmap("tab10").colors


def loss_by_kv_bytes(
    path: Path, rows: list[dict[str, Any]], tokens: int, baselines: dict[str, float]
) -> None:
    """Draws runs as dots, the mean of each wiring as a labelled ring, n-gram baselines in range as lines."""
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for i, (name, group) in enumerate(_groups(rows).items()):
        kib = [row["kv_bytes"] / 1024 for row in group]
        losses = [row["nats"] for row in group]
        axis.scatter(kib, losses, s=14, color=_COLOURS[i % 10], lw=0)
        axis.scatter(
            kib[0], _mean(losses), s=90, facecolors="none", edgecolors=[_COLOURS[i % 10]], label=name
        )
    seen = [row["nats"] for row in rows]
    span = max(max(seen) - min(seen), 0.02)
    axis.set_ylim(min(seen) - 0.4 * span, max(seen) + 0.4 * span)
    for name, nats in baselines.items():
        if axis.get_ylim()[0] < nats < axis.get_ylim()[1]:
            axis.axhline(nats, color="grey", lw=0.8, ls="--")
            axis.annotate(f"{name} counts", (axis.get_xlim()[1], nats), ha="right", va="bottom", fontsize=8)
    axis.set_xlim(left=0)
    axis.set(xlabel=f"KV cache of {tokens} tokens, KiB (bfloat16)", ylabel="validation loss, nats per token")
    figure.legend(fontsize=8, frameon=False, loc="outside right center")
    steps, seeds = rows[0]["steps"], len({row["seed"] for row in rows})
    note = (
        f"After {steps} steps of a small model, {seeds} seeds (dots; rings: their means). So short a training"
        " favours windows:\nfull attention behind here does not show that it stays behind with more training."
    )
    _finish(figure, axis, path, "Language modelling: validation loss and KV bytes by wiring", note)


def loss_by_init(path: Path, rows: list[dict[str, Any]], dense_by_seed: list[float], wiring: str) -> None:
    """Draws validation loss by step: the mean over seeds as a line, every seed as a thin one.

    The axis ends a little above the dense model's loss; the legend gives the final loss of every line.

    Args:
      dense_by_seed: losses of the dense models before rewiring.
    """
    dense = _mean(dense_by_seed)
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for i, (name, group) in enumerate(_groups(rows).items()):
        steps = sorted(int(key.split("_")[1]) for key in group[0] if key.startswith("nats_"))
        lines = [[row[f"nats_{step}"] for step in steps] for row in group]
        if name == "dense":  # step 0 of the others is not in the table
            steps, lines = [0, *steps], [[start, *line] for start, line in zip(dense_by_seed, lines)]
        for line in lines:
            axis.plot(steps, line, color=_COLOURS[i % 10], lw=0.6, alpha=0.5)
        mean = [_mean(at) for at in zip(*lines)]
        axis.plot(steps, mean, color=_COLOURS[i % 10], lw=1.8, label=f"{name}, {mean[-1]:.3f} at the end")
    axis.axhline(dense, color="grey", lw=0.8, ls="--")
    axis.annotate(
        "the dense model before rewiring",
        (0.99, dense),  # where the curves have parted
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
    )
    axis.axvspan(0, min(steps[1:] if steps[0] == 0 else steps), color="grey", alpha=0.08, lw=0)
    axis.set_xlim(left=0)
    axis.set_ylim(top=dense + _HEADROOM)
    axis.set(xlabel="steps after rewiring", ylabel="validation loss, nats per token")
    figure.legend(fontsize=8, frameon=False, loc="outside right center", title="initialization")
    note = (
        f"{max(steps)} steps, {len({row['seed'] for row in rows})} seeds (thin lines; thick: their mean)."
        " Grey: not measured between rewiring and the first validation.\nFrom scratch starts above the axis."
        " So short a training does not show where the lines would meet."
    )
    _finish(
        figure, axis, path, f"A dense model rewired to {wiring}, by initialization of the shared K/V", note
    )


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [row for row in rows if row["variant"] == name] for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finish(figure: Figure, axis: Axes, path: Path, title: str, note: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=7.5, color="#555555", x=0.02, ha="left")
    figure.suptitle(title, fontsize=10)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
    plt.close(figure)
