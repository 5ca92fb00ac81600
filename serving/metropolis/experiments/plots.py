"""Plots of experiments: completion times by mode, ablations, and a Gantt chart of agent-steps.

The only module here that imports matplotlib (the extra `report`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pallas_kernels.results import read_csv
from serving.metropolis.experiments.simulate import simulate_trace
from serving.metropolis.experiments.summary import summarise
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.runtime.store import Commit
from serving.metropolis.worlds.synthetic import CALLS_PER_HOUR
from serving.metropolis.worlds.trace import AgentTrace

COLOURS = {
    "single_thread": "#b8bcc2",
    "parallel_sync": "#c98a5a",
    "metropolis": "#2d6f8e",
    "oracle": "#7fb08a",
    "critical": "#d9d2b0",
    "no_dependency": "#e6c6d0",
}
SOURCE = "synthetic traces, virtual time; bars: mean of seeds"
WHISKERS = ", whiskers: standard deviation"
RATIOS = "; on metropolis: speed-up over parallel-sync, share of the oracle"


def draw(name: str, path: Path) -> Path:
    """Draws the plot of an experiment beside its CSV and returns the path of the PNG."""
    rows = summarise(read_csv(path))
    match name.split("_")[0]:
        case "e4":
            figure = _priority(rows)
        case "e5":
            figure = _hours(rows)
        case "e6":
            figure = _variants(rows)
        case "e8":
            figure = _network(rows)
        case _:
            figure = _times(rows)
    kind = name[:2]
    note = SOURCE + WHISKERS * (kind != "e4") + RATIOS * (kind not in ("e4", "e5", "e6", "e8"))
    figure.text(0.01, 0.005, note, fontsize=7, color="#666666")
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return out


def _panel_key(row: dict[str, Any]) -> tuple[str, int]:
    return row["server"], int(row["hour"])


def _title(server: str, hour: int) -> str:
    when = "whole day" if hour < 0 else f"{hour}-{hour + 1} h"
    return f"{server}, {when}"


def _times(rows: list[dict[str, Any]]) -> Figure:
    """One panel per server and hour, one group of bars per (agents, replicas), one bar per mode."""
    panels = sorted({_panel_key(r) for r in rows}, key=lambda p: (p[0], -p[1]))
    figure, axes = plt.subplots(len(panels), 1, figsize=(9.5, 3.4 * len(panels) + 0.4), squeeze=False)
    modes = [m for m in COLOURS if any(r["mode"] == m for r in rows)]
    for axis, panel in zip(axes[:, 0], panels):
        panel_rows = [r for r in rows if _panel_key(r) == panel]
        groups = sorted({(int(r["agents"]), int(r["replicas"])) for r in panel_rows})
        for m, mode in enumerate(modes):
            for g, group in enumerate(groups):
                found = [
                    r
                    for r in panel_rows
                    if r["mode"] == mode and (int(r["agents"]), int(r["replicas"])) == group
                ]
                if found:
                    _bar(axis, g + (m - (len(modes) - 1) / 2) * 0.8 / len(modes), found[0], 0.8 / len(modes))
        axis.set_xticks(
            range(len(groups)), [f"{a} agents\n{r} replica{'s' * (r > 1)}" for a, r in groups], fontsize=8
        )
        axis.set_title(_title(*panel), fontsize=10, loc="left")
        axis.set_ylabel("completion time (s)")
        axis.set_yscale("log")
        axis.set_ylim(
            bottom=0.12 * min(r["elapsed_s"] for r in panel_rows)
        )  # room for the labels in the bars
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[m]) for m in modes]
    top = 1 - 0.35 / (3.4 * len(panels) + 0.4)
    figure.legend(
        handles, [m.replace("_", " ") for m in modes], loc="upper center", ncols=len(modes), frameon=False
    )
    figure.tight_layout(rect=(0, 0.02, 1, top))
    return figure


def _bar(axis: Axes, x: float, row: dict[str, Any], width: float) -> None:
    spread = row["elapsed_s_sd"] or None
    axis.bar(x, row["elapsed_s"], width, color=COLOURS[row["mode"]], yerr=spread, error_kw={"lw": 0.8})
    if row["mode"] == "metropolis" and "vs_sync" in row:
        words = f"{row['vs_sync']:.2f}x"
        if "of_oracle" in row:
            words += f", {100 * row['of_oracle']:.0f}%"
        style: dict[str, Any] = {
            "rotation": 90,
            "ha": "center",
            "va": "bottom",
            "fontsize": 7.5,
            "color": "white",
        }
        axis.text(x, 0.03, words, transform=axis.get_xaxis_transform(), weight="bold", **style)


def _network(rows: list[dict[str, Any]]) -> Figure:
    """Speed-up over parallel-sync on the social network: one version, many versions, and the oracle."""
    figure, axis = plt.subplots(figsize=(7.5, 3.2))
    kinds = (("metropolis", "paper"), ("metropolis", "versions"), ("oracle", "paper"))
    names = ("metropolis, one version", "metropolis, by version", "oracle")
    replicas = sorted({int(r["replicas"]) for r in rows})
    for k, (kind, name) in enumerate(zip(kinds, names)):
        found = [r for r in rows if (r["mode"], r["variant"]) == kind]
        for r in found:
            x = replicas.index(int(r["replicas"])) + (k - 1) * 0.27
            colour = COLOURS[kind[0]] if kind[1] == "paper" else "#69a3bd"
            first = r is found[0]
            axis.bar(x, r["vs_sync"], 0.27, color=colour, label=name if first else None, yerr=r["vs_sync_sd"])
            words = f"{r['vs_sync']:.2f}x"
            axis.annotate(
                words, (x, r["vs_sync"]), (0, 4), textcoords="offset points", ha="center", fontsize=8
            )
    axis.set_xticks(range(len(replicas)), [f"{r} replica{'s' * (r > 1)}" for r in replicas])
    axis.set_ylabel("speed-up over parallel-sync")
    axis.margins(y=0.12)
    axis.set_title("Social graph of 1,000 people, 60 steps", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def _priority(rows: list[dict[str, Any]]) -> Figure:
    """Time saved by serving earlier steps first, by slots per replica."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8))
    groups = sorted({(int(r["agents"]), int(r["slots"])) for r in rows})
    for m, mode in enumerate(("metropolis", "oracle")):
        for g, (agents, slots) in enumerate(groups):
            on, off = (
                next(
                    r["elapsed_s"]
                    for r in rows
                    if (r["mode"], int(r["agents"]), int(r["slots"]), int(r["priority"]))
                    == (mode, agents, slots, flag)
                )
                for flag in (1, 0)
            )
            gain = 100 * (off / on - 1)
            axis.bar(g + (m - 0.5) * 0.36, gain, 0.36, color=COLOURS[mode], label=mode if g == 0 else None)
            place = (g + (m - 0.5) * 0.36, max(gain, 0))
            axis.annotate(f"{gain:.1f}", place, (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axis.axhline(0, color="#444444", lw=0.8)
    axis.set_xticks(range(len(groups)), [f"{a} agents\n{s} slots per replica" for a, s in groups], fontsize=8)
    axis.set_ylabel("time saved by priority (%)")
    axis.set_title(f"Earlier steps first, busy hour, {rows[0]['replicas']} replicas", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def _hours(rows: list[dict[str, Any]]) -> Figure:
    """Calls of 25 agents by hour, generated and targeted; published points are marked."""
    figure, axis = plt.subplots(figsize=(8.5, 3.8))
    by_hour = {int(r["hour"]): r for r in rows}
    hours = range(24)
    axis.bar(
        hours,
        [by_hour[h]["calls"] for h in hours],
        color=COLOURS["metropolis"],
        yerr=[by_hour[h]["calls_sd"] for h in hours],
        error_kw={"lw": 0.8},
        label="generated",
    )
    axis.step(hours, CALLS_PER_HOUR, where="mid", color="#444444", lw=1, label="target (interpolated)")
    published = (1, 2, 3, 6, 12)
    axis.plot(
        published, [CALLS_PER_HOUR[h] for h in published], "*", color="#b4451f", ms=11, label="published"
    )
    whole = by_hour[-1]
    axis.set_title(
        f"Calls by hour, 25 agents; whole day {whole['calls']:.0f} ± {whole['calls_sd']:.0f}"
        " (published 56,700)",
        fontsize=10,
        loc="left",
    )
    axis.set_xlabel("hour")
    axis.set_ylabel("calls")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def _variants(rows: list[dict[str, Any]]) -> Figure:
    """Speed-up over parallel-sync of each variant and of the oracle."""
    sizes = sorted({int(r["agents"]) for r in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(4.2 * len(sizes) + 1.5, 3.6), squeeze=False)
    for axis, agents in zip(axes[0], sizes):
        panel_rows = [r for r in rows if int(r["agents"]) == agents]
        known = ["paper", "see 2", "see 8", "move 2", "versions", "still", "versions, still"]
        bars = {r["variant"]: r for r in panel_rows if r["mode"] == "metropolis"}
        names = [n for n in known if n in bars]
        oracle = next(r for r in panel_rows if r["mode"] == "oracle")
        for y, name in enumerate(names):
            axis.barh(
                y,
                bars[name]["vs_sync"],
                color=COLOURS["metropolis"],
                xerr=bars[name]["vs_sync_sd"],
                alpha=1.0 if name == "paper" else 0.75,
                error_kw={"lw": 0.8},
            )
            axis.annotate(
                f"{bars[name]['vs_sync']:.2f}x, {100 * bars[name]['of_oracle']:.0f}% of oracle",
                (0.03 * oracle["vs_sync"], y),
                va="center",
                fontsize=7.5,
                color="white",
            )
        axis.axvline(oracle["vs_sync"], color=COLOURS["oracle"], lw=2)
        axis.text(oracle["vs_sync"], -0.75, "oracle", color="#4d8059", fontsize=8, ha="center")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("speed-up over parallel-sync")
        axis.set_title(f"{agents} agents, busy hour, 8 replicas", fontsize=10, loc="left", pad=14)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def gantt(
    trace: AgentTrace, server: ServerConfig, out: Path, *, modes: Sequence[str], until_s: float
) -> Path:
    """Draws agent-steps over time: a panel per mode, a row per agent, a bar per agent-step with calls."""
    figure, axes = plt.subplots(len(modes), 1, figsize=(11, 2.9 * len(modes)), sharex=True, squeeze=False)
    palette = matplotlib.colormaps["viridis"]
    names = sorted(trace.names)
    for axis, mode in zip(axes[:, 0], modes):
        log: list[Commit] = []
        elapsed = simulate_trace(trace, mode, server, on_commit=log.append).elapsed_s  # type: ignore[arg-type]
        for commit in log:
            if not commit.calls or commit.start_s > until_s:
                continue
            for name in commit.members:
                if commit.step in trace.calls[trace.names.index(name)]:
                    colour = palette(commit.step / trace.steps)
                    row = names.index(name)
                    axis.barh(row, commit.end_s - commit.start_s, 0.8, commit.start_s, color=colour)
        axis.set_xlim(0, until_s)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_ylabel("agent")
        axis.set_title(f"{mode.replace('_', ' ')}: the hour takes {elapsed:.0f} s", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("server time (s)")
    figure.tight_layout(rect=(0, 0.02, 0.91, 1))
    bar = figure.add_axes((0.925, 0.15, 0.012, 0.7))
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, trace.steps), palette)
    figure.colorbar(scale, cax=bar, label="step being run")
    figure.text(0.01, 0.005, "synthetic trace, virtual time; a bar is a commit with calls", fontsize=7)
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return out
