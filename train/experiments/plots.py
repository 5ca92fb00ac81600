"""Pictures of language modelling: loss against KV bytes, and loss on the way from several starts."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mixattn.tools import files

_ABOVE = 0.4  # nats of the picture of starts above the dense model
_COLOURS = plt.get_cmap("tab10").colors


def against_bytes(path: Path, rows: list[dict[str, Any]], tokens: int, bars: dict[str, float]) -> None:
    """Every run as a dot, each wiring's mean as a named ring, n-gram bars that are in sight as lines."""
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for i, (name, mine) in enumerate(_groups(rows).items()):
        kib = [row["kv_bytes"] / 1024 for row in mine]
        nats = [row["nats"] for row in mine]
        axis.scatter(kib, nats, s=14, color=_COLOURS[i % 10], lw=0)
        axis.scatter(kib[0], _mean(nats), s=90, facecolors="none", edgecolors=[_COLOURS[i % 10]], label=name)
    seen = [row["nats"] for row in rows]
    room = max(max(seen) - min(seen), 0.02)
    axis.set_ylim(min(seen) - 0.4 * room, max(seen) + 0.4 * room)
    for name, bar in bars.items():
        if axis.get_ylim()[0] < bar < axis.get_ylim()[1]:
            axis.axhline(bar, color="grey", lw=0.8, ls="--")
            axis.annotate(f"{name} counts", (axis.get_xlim()[1], bar), ha="right", va="bottom", fontsize=8)
    axis.set_xlim(left=0)
    axis.set(xlabel=f"KV cache of {tokens} tokens, KiB (bfloat16)", ylabel="validation loss, nats a token")
    figure.legend(fontsize=8, frameon=False, loc="outside right center")
    _finish(figure, axis, path, "Language modelling: what a wiring of K/V keeps and what it costs")


def of_starts(path: Path, rows: list[dict[str, Any]], dense: float, wiring: str) -> None:
    """Validation loss by step, the mean over seeds as a line and every seed as a thin one.

    The axis ends a little above the dense model before; the legend has every end, also of lines beyond it.
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for i, (name, mine) in enumerate(_groups(rows).items()):
        steps = sorted(int(key.split("_")[1]) for key in mine[0] if key.startswith("nats_"))
        lines = [[row[f"nats_{step}"] for step in steps] for row in mine]
        for line in lines:
            axis.plot(steps, line, color=_COLOURS[i % 10], lw=0.6, alpha=0.5)
        mean = [_mean(at) for at in zip(*lines)]
        axis.plot(steps, mean, color=_COLOURS[i % 10], lw=1.8, label=f"{name}, {mean[-1]:.3f} at the end")
    axis.axhline(dense, color="grey", lw=0.8, ls="--")
    axis.annotate(
        "the dense model before",
        (0.02, dense),
        xycoords=("axes fraction", "data"),
        ha="left",
        va="bottom",
        fontsize=8,
    )
    axis.set_xlim(left=0)
    axis.set_ylim(top=dense + _ABOVE)
    axis.set(xlabel="steps after rewiring", ylabel="validation loss, nats a token")
    figure.legend(fontsize=8, frameon=False, loc="outside right center", title="start")
    _finish(figure, axis, path, f"A dense model brought into {wiring}: what the shared K/V start from")


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [row for row in rows if row["variant"] == name] for name in names}


def _mean(values) -> float:
    return sum(values) / len(values)


def _finish(figure, axis, path: Path, title: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
    plt.close(figure)
