"""The picture of `pretrained`: held-out nats against KV bytes, before and after recovery."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from mixattn.tools import files

_COLOURS = plt.get_cmap("tab10").colors
_FIELD = "kv_bytes_tok_4k"


def draw(path: Path, rows: list[dict[str, Any]], window: int) -> None:
    """Hollow: rewired, as it is. Filled: after the fits. A star: the original."""
    figure, axis = plt.subplots(figsize=(6.4, 6.0), layout="constrained")
    for i, row in enumerate(rows):
        _wiring(axis, row, _COLOURS[i % len(_COLOURS)])
    axis.set_xscale("log", base=2)
    ticks = sorted({row[_FIELD] / 1024 for row in rows})
    axis.set_xticks([tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if tick <= 2 * ticks[-1]])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(
        xlabel="KV cache, KiB per token at 4,096 tokens (bfloat16)", ylabel="held-out loss, nats per token"
    )
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=2)
    title = "SmolLM2-135M rewired: hollow before, filled after the fits"
    axis.set_title(
        f"{title}\nwindows of {window} tokens; fits in closed form, no gradient steps",
        fontsize=10,
        loc="left",
    )
    with files.whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
    plt.close(figure)


def _wiring(axis: Axes, row: dict[str, Any], colour: Any) -> None:
    kib = row[_FIELD] / 1024
    before, after = row["nats_before"], row["nats_after"]
    if row["wiring"] == "standard":
        axis.plot(kib, before, "*", ms=13, color=colour, label=f"{row['wiring']} {before:.2f}")
        return
    hollow, name = {"ms": 7, "mfc": "none", "mec": colour}, f"{row['wiring']} {before:.2f}"
    if not isinstance(after, float):
        axis.plot(kib, before, "o", **hollow, label=f"{name}, fits not run")
        return
    axis.annotate(
        "", (kib, after), (kib, before), arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2}
    )
    axis.plot(kib, before, "o", **hollow)
    axis.plot(kib, after, "o", ms=7, color=colour, label=f"{name} → {after:.2f}")
