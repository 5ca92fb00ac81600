"""The plot of the recall experiment: accuracy beyond the windows against KV bytes, and by distance."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from mixattn.tools import files

_COLOURS = plt.get_cmap("tab10").colors
_MARKERS = "oD^vsP*Xh"
_DASHES = ("-", "--", "-.", ":")
_SAME_LABEL = 1.2  # wirings whose KV bytes differ by at most this factor may share a label


def draw(path: Path, rows: list[dict[str, Any]], far: int, guess: float, length: int) -> None:
    """Draws far accuracy of every run against KV bytes (left) and accuracy by distance over seeds (right).

    Args:
      far: first distance of the first bucket beyond the stacked windows' reach.
      guess: accuracy there of a guesser that knows the values but not their keys.
      length: tokens per row.
    """
    buckets = [name for name in rows[0] if name[0].isdigit() and "-" in name]
    beyond = [name for name in buckets if int(name.split("-")[0]) >= far]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    places = []
    dodge = 0.05  # curves that lie on each other stay visible beside each other
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for i, variant in enumerate(variants):
        group = [row for row in rows if row["variant"] == variant]
        style = {"color": _COLOURS[i % 10], "marker": _MARKERS[i % 9]}
        kib = group[0]["kv_bytes"] / 1024
        recall = [sum(row[b] for b in beyond) / len(beyond) for row in group]
        left.scatter([kib] * len(group), recall, s=30, alpha=0.7, **style)
        places.append((kib, sum(recall) / len(recall), variant))
        lines = list(zip(*([row[b] for b in buckets] for row in group)))
        label = f"{variant} ({len(group)} seed{'s' * (len(group) > 1)})"
        at_x = [x + dodge * (i - (len(variants) - 1) / 2) for x in range(len(lines))]
        means = [sum(at) / len(at) for at in lines]
        below, above = ([abs(m - pick(at)) for m, at in zip(means, lines)] for pick in (min, max))
        dashes = _DASHES[i % len(_DASHES)]
        right.errorbar(
            at_x, means, (below, above), lw=1.2, ms=4.5, ls=dashes, elinewidth=0.8, label=label, **style
        )
    _label_points(left, places)
    for axis in (left, right):
        axis.axhline(guess, color="grey", lw=0.8, ls="--")
        axis.set_ylim(-0.04, 1.04)
        axis.spines[["top", "right"]].set_visible(False)
    corner = {"xycoords": ("axes fraction", "data"), "ha": "right", "fontsize": 8, "color": "grey"}
    left.annotate("guessing among far values", (0.98, guess + 0.02), **corner)
    left.set(xlabel="KV cache of one row, KiB (float32)", ylabel=f"accuracy at distance {far} and more")
    right.set(xlabel="distance of the value, tokens", ylabel="accuracy, mean and range over seeds")
    right.set_xticks(range(len(buckets)), buckets)
    right.axvline(len(buckets) - len(beyond) - 0.5, color="grey", lw=0.8, ls=":")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    title = f"Key-value recall in rows of {length} tokens: accuracy and KV bytes by wiring"
    figure.suptitle(title, fontsize=10)
    most, seeds = max(row["steps"] for row in rows), len({row["seed"] for row in rows})
    note = (
        f"At most {most} steps, {seeds} seed{'s' * (seeds > 1)}. Marks of one distance are side by side."
        " A wiring that fails here may learn the task with more steps; the task is synthetic and says nothing"
        " of text."
    )
    figure.supxlabel(note, fontsize=7.5, color="#555555", x=0.02, ha="left")
    with files.whole(path) as temporary:
        figure.savefig(
            temporary, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None
        )
    plt.close(figure)


def _label_points(axis: Axes, places: list[tuple[float, float, str]]) -> None:
    """Writes names beside their points, one label for points close together, on a logarithmic byte axis."""
    groups: list[list[tuple[float, float, str]]] = []
    for place in sorted(places):
        near = (g for g in groups if place[0] <= _SAME_LABEL * g[0][0] and abs(place[1] - g[0][1]) < 0.1)
        if (group := next(near, None)) is None:
            groups.append([place])
        else:
            group.append(place)
    for i, group in enumerate(groups):
        up = group[0][1] < 0.5
        # The leftmost label of a row extends to the left, the others to the right: they do not overlap.
        first = all((other[0][1] < 0.5) != up for other in groups[:i])
        names = "\n".join(name for _, _, name in group)
        axis.annotate(
            names,
            (group[0][0], group[0][1]),
            xytext=(5 if first else -5, 7 if up else -7),
            textcoords="offset points",
            ha="right" if first else "left",
            va="bottom" if up else "top",
            fontsize=8,
        )
    axis.set_xscale("log", base=2)
    axis.set_xlim(min(places)[0] / 2.5, max(places)[0] * 2.5)  # room for the names
    axis.xaxis.set_major_formatter(lambda kib, _: f"{kib:g}")
