"""Draws ratings with their intervals. Takes the flags of `arena fit`; needs the extra `report`.

python -m mixattn.evals arena plot --votes=votes.jsonl --out=ratings.png
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.arena.commands import command_line, fit
from mixattn.tools import files

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    fit.define_flags()
    flags.DEFINE_string("out", "ratings.png", "Picture to write: .png or .svg.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    out = Path(FLAGS.out)
    if out.suffix not in (".png", ".svg"):
        raise ValueError(f"--out={out} ends in neither .png nor .svg")
    draw(fit.ranked(), out)
    print(f"wrote {out}", file=sys.stderr)


def draw(report: dict[str, Any], out: Path) -> None:
    """One line a model, best at the top, with its interval and rank range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = report["models"][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.28 * len(models)), layout="constrained")
    rating = [m["rating"] for m in models]
    error = [[m["rating"] - m["lower"] for m in models], [m["upper"] - m["rating"] for m in models]]
    axes.errorbar(rating, range(len(models)), xerr=error, fmt="o", markersize=4, capsize=2)
    axes.set_yticks(range(len(models)), [f"{m['model']}  ({m['rank'][0]}-{m['rank'][1]})" for m in models])
    axes.set_xlabel(
        f"rating, {1 - report['alpha']:.0%} interval ({report['intervals']}, {report['used']} votes)"
    )
    axes.grid(axis="x", alpha=0.3)
    with files.whole(out) as draft:
        figure.savefig(draft, format=out.suffix[1:], dpi=150)
    pyplot.close(figure)
