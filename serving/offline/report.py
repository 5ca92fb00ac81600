"""Renders WORKDIR/report.html, one self-contained file, from the results of training and serving in WORKDIR.

    python -m serving.offline.report --workdir=runs/demo

Every figure on the page is read from summary.json, metrics.csv and serve/summary.json of that folder.
"""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from absl import flags, logging
from matplotlib.figure import Figure

from mixattn.tools import cli, files
from pallas_kernels import results

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # imported after the backend without a display is chosen

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training and serving run.")

_COLOURS = {"flood": "#c44e52", "bursty": "#4c72b0", "modest": "#55a868"}
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def main() -> None:
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing; name the folder of a run, e.g. --workdir=runs/demo")
    workdir = Path(_WORKDIR.value)
    train, serve = _read(workdir / "summary.json"), _read(workdir / "serve" / "summary.json")
    metrics = results.read_csv(workdir / "metrics.csv")
    files.write_text(workdir / "report.html", page(train, serve, metrics))
    print(f"report: {workdir / 'report.html'}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; run train.main and serving.main with this --workdir"
        ) from None


def page(train: dict[str, Any], serve: dict[str, Any], metrics: list[dict[str, str]]) -> str:
    """The page as HTML; model output is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    with plt.rc_context(_STYLE):
        pictures = {
            "loss": draw_loss(train, metrics),
            "service": draw_service(serve["policies"]),
            "gaps": draw_gaps(serve["policies"]),
            "memory": draw_memory(serve["memory"]),
        }
    return environment.get_template("report.html").render(
        train=train, serve=serve, pictures=pictures, labels=_gap_labels(serve["policies"])
    )


def _gap_labels(policies: dict[str, Any]) -> dict[str, str]:
    """The verdict on each policy's gap, shown beside its bound."""
    labels = {}
    for name, run in policies.items():
        gap, bound = run["table"]["gap"], run["table"]["bound"]
        if bound is None:
            labels[name] = "no bound"
        else:
            labels[name] = "within the bound" if gap <= bound else "ABOVE THE BOUND"
    return labels


def draw_loss(train: dict[str, Any], metrics: list[dict[str, str]]) -> str:
    """Training and validation loss by step, with the baselines."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    steps = [int(row["step"]) for row in metrics]
    axes.plot(steps, [float(row["loss"]) for row in metrics], color="#bbbbbb", lw=0.8, label="training loss")
    seen = [(int(r["step"]), float(r["validation"])) for r in metrics if r["validation"]]
    axes.plot(*zip(*seen), "o-", color="#4c72b0", ms=4, label="validation loss")
    for (name, nats), style in zip(train["bars_nats"].items(), ("-", "--", ":")):
        axes.axhline(nats, color="#333333", lw=0.9, ls=style, label=f"{name}, {nats:.2f}")
    axes.set(xlabel="step", ylabel="nats per token", ylim=(None, max(train["bars_nats"].values()) + 1))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return _embed(figure)


def draw_service(policies: dict[str, Any]) -> str:
    """Cumulative service by client, one panel per policy."""
    figure, all_axes = plt.subplots(
        1, len(policies), figsize=(3.3 * len(policies), 3), sharey=True, sharex=True
    )
    for axes, (name, run) in zip(all_axes if len(policies) > 1 else [all_axes], policies.items()):
        for client, curve in run["curves"].items():
            axes.step(*zip(*curve), where="post", label=client, color=_COLOURS.get(client))
        axes.set(title=name, xlabel="seconds")
    figure.axes[0].set_ylabel("service, weighted tokens")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return _embed(figure)


def draw_gaps(policies: dict[str, Any]) -> str:
    """The largest service gap so far by policy, with the proven bounds."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for (name, run), colour in zip(policies.items(), ("#c44e52", "#4c72b0", "#55a868", "#8172b3")):
        if run["gap_curve"]:
            curve = [*run["gap_curve"], [run["table"]["duration_s"], run["table"]["gap"]]]
            axes.step(*zip(*curve), where="post", color=colour, label=f"{name}")
        if run["table"]["bound"] is not None:
            axes.axhline(run["table"]["bound"], color=colour, ls="--", lw=0.9, label=f"{name}, proven bound")
    axes.set(xlabel="seconds", ylabel="largest gap so far")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _embed(figure)


def draw_memory(rows: list[dict[str, Any]]) -> str:
    """KV memory of one request by length."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    lengths = sorted({row["tokens"] for row in rows}, reverse=True)
    for i, (wiring, colour) in enumerate((("standard", "#bbbbbb"), ("this model", "#4c72b0"))):
        held = [
            r["live_bytes"] / 2**20
            for n in lengths
            for r in rows
            if (r["tokens"], r["wiring"]) == (n, wiring)
        ]
        bars = axes.barh([y + 0.4 * i for y in range(len(lengths))], held, 0.38, color=colour, label=wiring)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set_yticks([y + 0.2 for y in range(len(lengths))], [f"{n:,} tokens" for n in lengths])
    axes.set(xlabel="KV memory of one request, MiB")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return _embed(figure)


def _embed(figure: Figure) -> str:
    """The figure as a data URL, so that the page needs no other file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.run(main)
