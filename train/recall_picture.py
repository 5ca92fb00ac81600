"""One picture of the recall experiment: accuracy beyond the windows against KV bytes, and by distance."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mixattn import files

_COLOURS = plt.get_cmap("tab10").colors


def draw(path: Path, runs: list[dict[str, Any]], far: int, guess: float, length: int) -> None:
    """Draws every run as a point; left: far accuracy against KV bytes, right: mean accuracy by distance.

    Args:
      far: first distance of the first bucket beyond the stacked windows' reach.
      guess: accuracy there of a guesser that sees which values occurred, not whose they are.
    """
    buckets = [name for name in runs[0] if name[0].isdigit() and "-" in name]
    beyond = [name for name in buckets if int(name.split("-")[0]) >= far]
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, variant in enumerate(variants):
        mine = [run for run in runs if run["variant"] == variant]
        accuracy = [sum(run[b] for b in beyond) / len(beyond) for run in mine]
        colour, marker = _COLOURS[i % 10], "oD^vsP*Xh"[i % 9]
        label = f"{variant} ({len(mine)} seed{'s' * (len(mine) > 1)})"
        left.scatter(
            [run["kv_bytes"] / 1024 for run in mine],
            accuracy,
            # Hollow and growing, so that variants with the same bytes and accuracy are all seen.
            facecolors="none",
            edgecolors=[colour],
            marker=marker,
            s=20 + 18 * i,
            label=label,
        )
        mean = [sum(run[b] for run in mine) / len(mine) for b in buckets]
        right.plot(range(len(buckets)), mean, color=colour, marker=marker, lw=1.3)
    for axis in (left, right):
        axis.axhline(guess, color="grey", lw=0.8, ls="--")
        axis.set_ylim(-0.04, 1.04)
        axis.spines[["top", "right"]].set_visible(False)
    left.annotate(
        "guessing among far values",
        (0.98, guess + 0.02),
        xycoords=("axes fraction", "data"),
        ha="right",
        fontsize=8,
        color="grey",
    )
    left.set(xlabel="KV cache of one row, KiB (float32)", ylabel=f"recall at distance {far} and more")
    left.set_xlim(left=0)
    right.set(xlabel="distance of the value, tokens", ylabel="recall, mean over seeds")
    right.set_xticks(range(len(buckets)), buckets)
    right.axvline(len(buckets) - len(beyond) - 0.5, color="grey", lw=0.8, ls=":")
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside right center",
        fontsize=8,
        frameon=False,
        markerscale=0.7,
    )
    figure.suptitle(
        f"Key-value recall in rows of {length} tokens: what a wiring of K/V keeps and what it costs",
        fontsize=10,
    )
    with files.whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
    plt.close(figure)
