"""Two pictures: scores by depth and length, and scores by budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixattn.evals.longcontext.journal import Answer
from mixattn.evals.longcontext.policies import FULL
from mixattn.evals.longcontext.statistics import by_depth, table
from mixattn.evals.longcontext.suite import NATS_TASKS
from mixattn.evals.longcontext.tasks import AT_A_DEPTH
from mixattn.tools import files

COLUMNS = 4


def heat_map(answers: Sequence[Answer], path: Path) -> bool:
    """One panel for each task with a depth and each policy. Returns whether there was anything to draw."""
    panels = [
        (task, policy, cells)
        for task in AT_A_DEPTH
        for policy, cells in sorted(by_depth(answers, task).items(), key=lambda item: item[0] != FULL)
    ]
    if not panels:
        return False
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(2.6 * columns + 0.8, 2.3 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (task, policy, cells) in zip(axes.flat, panels, strict=False):
        depths, lengths = sorted({d for d, _ in cells}), sorted({n for _, n in cells})
        grid = [[cells.get((d, n), float("nan")) for n in lengths] for d in depths]
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axis.set_title(f"{task}: {policy}", fontsize=8)
        axis.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=7)
        axis.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths], fontsize=7)
    figure.supxlabel("tokens of context", fontsize=8)
    figure.supylabel("where the answer lies (0 % = beginning)", fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the answer found", shrink=0.8)
    _save(figure, path)
    return True


def budget_curve(answers: Sequence[Answer], path: Path) -> bool:
    """Draws the score of each scorer by its budget, a panel for each task and length, with intervals."""
    rows = [row for row in table(answers) if row["policy"] != FULL]
    places = list(dict.fromkeys((row["task"], row["length"], row["mode"]) for row in rows))
    if not places:
        return False
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    full = {(r["task"], r["length"], r["mode"]): r for r in table(answers) if r["policy"] == FULL}
    columns = min(COLUMNS, len(places))
    lines = -(-len(places) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(2.9 * columns, 2.5 * lines + 0.6), squeeze=False, layout="constrained"
    )
    scorers = sorted({row["policy"].rsplit(" ", 1)[0] for row in rows})
    for axis in axes.flat[len(places) :]:
        axis.set_visible(False)
    for axis, place in zip(axes.flat, places, strict=False):
        here = [row for row in rows if (row["task"], row["length"], row["mode"]) == place]
        for number, scorer in enumerate(scorers):
            _curve(axis, [row for row in here if row["policy"].rsplit(" ", 1)[0] == scorer], scorer, number)
        if place in full:
            axis.axhline(full[place]["score"], color="black", linewidth=1, linestyle="--", label="full cache")
        task, length, mode = place
        axis.set_title(
            f"{task}, {length} tokens" + (", question unseen" if mode == "agnostic" else ""), fontsize=8
        )
        axis.set_ylabel("nats a token (less is better)" if task in NATS_TASKS else "share found", fontsize=7)
        axis.tick_params(labelsize=7)
    handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7, frameon=False
    )
    figure.supxlabel("budget (share of the prompt, or keys)", fontsize=8)
    _save(figure, path)
    return True


def _curve(axis: Any, rows: Sequence[dict[str, Any]], scorer: str, number: int) -> None:
    rows = sorted(rows, key=lambda row: float(row["policy"].rsplit(" ", 1)[1]))
    if rows:
        budgets = [float(row["policy"].rsplit(" ", 1)[1]) for row in rows]
        spread = [[row["score"] - row["low"] for row in rows], [row["high"] - row["score"] for row in rows]]
        scores = [row["score"] for row in rows]
        axis.errorbar(
            budgets, scores, spread, label=scorer, marker="osD^vP*X"[number % 8], markersize=4, linewidth=1
        )


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with files.whole(path) as draft:
        figure.savefig(draft, format=path.suffix.lstrip("."), dpi=150)
    pyplot.close(figure)
