"""Two pictures: scores by depth and length, and what each budget costs.

Both are two or three panels wide, so that they can still be read at the width of a telephone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixattn.evals.longcontext.journal import Answer
from mixattn.evals.longcontext.policies import FULL
from mixattn.evals.longcontext.statistics import by_depth, table
from mixattn.evals.longcontext.suite import NATS_TASKS
from mixattn.evals.longcontext.tasks import AT_A_DEPTH
from mixattn.tools import files

WIDTH_IN = 6.0
CONTROLS = ("streaming", "random", "recent")  # no attention decides what they keep; drawn grey
COLOURS = ("#c2410c", "#0369a1", "#15803d", "#7e22ce", "#b8860b", "#be185d", "#0f766e")
GREYS = ("#444444", "#777777", "#a3a3a3")
MARKERS = "osD^vP*X"
NATS_TICKS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
SPREAD = 0.022  # neighbours at one budget stand apart by this part of it, so that intervals can be told apart


def heat_map(answers: Sequence[Answer], path: Path) -> bool:
    """A row of panels for each task with a depth and each scorer, a column for each budget.

    Returns whether there was anything to draw.
    """
    panels = {
        (task, policy): cells for task in AT_A_DEPTH for policy, cells in by_depth(answers, task).items()
    }
    if not panels:
        return False
    policies = sorted({_parts(policy) for _, policy in panels if policy != FULL})
    budgets = sorted({budget for _, budget in policies})
    tasks = list(dict.fromkeys(task for task, _ in panels))
    scorers = [FULL, *dict.fromkeys(scorer for scorer, _ in policies)]
    lines = [(task, scorer) for task in tasks for scorer in scorers]
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(lines),
        max(1, len(budgets)),
        figsize=(WIDTH_IN, 1.15 * len(lines) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for row, (task, scorer) in zip(axes, lines, strict=True):
        for axis, budget in zip(row, budgets or [0.0], strict=True):
            policy = FULL if scorer == FULL else f"{scorer} {budget:g}"
            shown = (task, policy) in panels and (scorer != FULL or axis is row[0])
            axis.set_visible(shown)
            if shown:
                image = _cells(axis, panels[task, policy])
                name = "full cache" if scorer == FULL else f"{scorer}, {_amount(budget)} of the keys"
                axis.set_title(name if len(tasks) == 1 else f"{task}: {name}", fontsize=9)
    figure.supxlabel("tokens of context and question", fontsize=9)
    figure.supylabel("where the answer lies", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.03)
    bar.set_label("share of the answer found", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if len(tasks) == 1:
        figure.suptitle(f"task: {tasks[0]}", fontsize=10)
    _save(figure, path)
    return True


def _amount(budget: float) -> str:
    return f"{budget:.0%}" if budget <= 1 else f"{budget:g}"


def _cells(axis: Any, cells: Mapping[tuple[float, int], float]) -> Any:
    """Colours and writes the mean score of each depth (down) and length (across)."""
    depths, lengths = sorted({d for d, _ in cells}), sorted({n for _, n in cells})
    grid = [[cells.get((d, n), float("nan")) for n in lengths] for d in depths]
    image = axis.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            colour = "black" if value > 0.5 else "white"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=8)
    axis.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths], fontsize=8)
    return image


def budget_curve(answers: Sequence[Answer], path: Path) -> bool:
    """Draws each scorer by its budget, a panel for each task, length and mode, with 95 % intervals.

    Nats are drawn as the paired difference from the full cache, shares as they are.
    """
    every = table(answers)
    rows = [row for row in every if row["policy"] != FULL]
    places = list(dict.fromkeys((row["task"], row["length"], row["mode"]) for row in rows))
    if not places:
        return False
    pyplot = _pyplot()
    full = {(r["task"], r["length"], r["mode"]): r["score"] for r in every if r["policy"] == FULL}
    columns = min(2, len(places))
    lines = -(-len(places) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(WIDTH_IN, 2.6 * lines + 0.9), squeeze=False, layout="constrained"
    )
    styles = _styles(sorted({_scorer(row) for row in rows}))
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(places))
    for axis, place in zip(axes.flat, places, strict=False):
        here = [row for row in rows if (row["task"], row["length"], row["mode"]) == place]
        _panel(axis, place, here, full.get(place), styles)
    found = [axis.get_legend_handles_labels() for axis in axes.flat]
    handles = {label: handle for both in found for handle, label in zip(*both, strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8.5, frameon=False
    )
    for axis in axes[-1]:
        axis.set_xlabel("keys kept, of the prompt", fontsize=8.5)
    _save(figure, path)
    return True


def _panel(
    axis: Any,
    place: tuple[str, int, str],
    rows: Sequence[dict[str, Any]],
    full: float | None,
    styles: Mapping[str, dict[str, Any]],
) -> None:
    task, length, mode = place
    paired = task in NATS_TASKS and full is not None
    for number, scorer in enumerate(styles):
        mine = sorted((row for row in rows if _scorer(row) == scorer), key=_budget)
        if mine:
            shift = 1 + SPREAD * (number - (len(styles) - 1) / 2)
            _curve(axis, mine, "minus_full" if paired else "score", shift, label=scorer, **styles[scorer])
    if full is not None:
        axis.axhline(0 if paired else full, color="black", linewidth=1, linestyle="--", label="full cache")
    budgets = sorted({_budget(row) for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(budgets, [_amount(budget) for budget in budgets], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_title(
        f"{task}, {length} tokens" + (", question unseen" if mode == "agnostic" else ""), fontsize=9.5
    )
    axis.set_ylabel(_what_is_drawn(task, paired), fontsize=8.5)
    if paired:  # a cache without sinks costs ten times as much as the rest
        axis.set_yscale("symlog", linthresh=NATS_TICKS[1], linscale=0.4)
        axis.set_ylim(bottom=min(-0.03, *(row["minus_full_low"] for row in rows)))
        axis.set_yticks(NATS_TICKS, [f"{tick:g}" for tick in NATS_TICKS])
        axis.set_yticks([], minor=True)
    elif task not in NATS_TASKS:
        axis.set_ylim(-0.05, 1.05)
    axis.tick_params(labelsize=8.5)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axis.set_axisbelow(True)


def _what_is_drawn(task: str, paired: bool) -> str:
    if task not in NATS_TASKS:
        return "share found (more is better)"
    return f"{'added ' if paired else ''}nats a token (less is better)"


def _curve(axis: Any, rows: Sequence[dict[str, Any]], field: str, shift: float, **style: Any) -> None:
    low, high = ("low", "high") if field == "score" else (f"{field}_low", f"{field}_high")
    values = [row[field] for row in rows]
    spread = [[row[field] - row[low] for row in rows], [row[high] - row[field] for row in rows]]
    axis.errorbar(
        [_budget(row) * shift for row in rows], values, spread, markersize=4.5, linewidth=1.3, **style
    )


def _styles(scorers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, mark and line of each: controls grey and dashed, "h2o" first."""
    order = sorted(scorers, key=lambda name: (name.split("+")[0] in CONTROLS, name != "h2o", name))
    styles: dict[str, dict[str, Any]] = {}
    used = {True: 0, False: 0}
    for number, name in enumerate(order):
        control = name.split("+")[0] in CONTROLS
        colours = GREYS if control else COLOURS
        styles[name] = {
            "color": colours[used[control] % len(colours)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": ":" if control else "-",
        }
        used[control] += 1
    return styles


def _parts(policy: str) -> tuple[str, float]:
    """Scorer and budget of a policy's name."""
    scorer, budget = policy.rsplit(" ", 1)
    return scorer, float(budget)


def _scorer(row: Mapping[str, Any]) -> str:
    return _parts(row["policy"])[0]


def _budget(row: Mapping[str, Any]) -> float:
    return _parts(row["policy"])[1]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with files.whole(path) as draft:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(draft, format=path.suffix.lstrip("."), dpi=150, metadata=metadata)
    _pyplot().close(figure)
