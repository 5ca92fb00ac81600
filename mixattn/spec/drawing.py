"""`python -m mixattn.spec`: a wiring drawn layer by layer, and the memory it takes.

    python -m mixattn.spec --pattern=ma_offset --n_layers=24       one wiring: picture, bytes by owner
    python -m mixattn.spec --wiring=0s_0s_2_3s_3s_2 --window=64
    python -m mixattn.spec --table                                 every pattern at this depth
    python -m mixattn.spec --table --live                          the same, counted on allocated cache arrays

The defaults are the shape of the MixAttention paper: 3 K/V heads of 128, bfloat16, windows of 1,024, 32,000
tokens. "MiB flat" keeps every token of sliding layers too, as caches without windows do; "saves" is the
standard pattern's bytes over this one's.
"""

import dataclasses
import json
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from mixattn.spec import PATTERNS, Layer, ModelConfig, kv_bytes, kv_bytes_by_owner
from mixattn.tools import cli

flags.DEFINE_enum("pattern", "ma_offset", list(PATTERNS), "A named wiring.")
flags.DEFINE_string("wiring", None, "A wiring string instead of a pattern.")
flags.DEFINE_integer("n_layers", None, "Depth (24, or that of --wiring).", lower_bound=1)
flags.DEFINE_integer("window", 1024, "Keys a sliding layer sees, the query included.", lower_bound=1)
flags.DEFINE_integer("tokens", 32_000, "Length of the sequence.", lower_bound=1)
flags.DEFINE_integer("kv_heads", 3, "Key/value heads.", lower_bound=1)
flags.DEFINE_integer("head_dim", 128, "Size of a head.", lower_bound=2)
flags.DEFINE_string("dtype", "bfloat16", "Of the cached keys and values.")
flags.DEFINE_bool("table", False, "Every pattern in one table.")
flags.DEFINE_bool("live", False, "With --table: count bytes on live cache objects instead of by the formula.")
flags.DEFINE_bool("json", False, "Print JSON instead.")
FLAGS = flags.FLAGS


def run() -> None:
    cli.run(main)


def main() -> None:
    rows = table() if FLAGS.table else [row("(given)" if FLAGS.wiring else FLAGS.pattern, config())]
    if FLAGS.json:
        print(json.dumps(rows, indent=2))
        return
    console = Console(highlight=False)
    if not FLAGS.table:
        draw(config(), console)
    console.print(grid(rows))


def config(pattern: str | None = None) -> ModelConfig:
    """The config that the flags describe, with `pattern` in place of theirs."""
    wiring = pattern or FLAGS.wiring or FLAGS.pattern
    named = wiring in PATTERNS
    n_layers = FLAGS.n_layers or (24 if named else len(wiring.split("_")))
    return ModelConfig(
        n_layers=n_layers,
        n_heads=FLAGS.kv_heads,
        n_kv_heads=FLAGS.kv_heads,
        head_dim=FLAGS.head_dim,
        kv_wiring=wiring,
        window=FLAGS.window,
        dtype=FLAGS.dtype,
    )


def draw(config: ModelConfig, console: Console) -> None:
    """One line a layer: what it is and whose K/V it reads, with the owner's line joined to its readers'."""
    held = kv_bytes_by_owner(config, FLAGS.tokens, FLAGS.dtype)
    console.print(f"{config.wiring}\n", soft_wrap=True)
    owners = list(config.owners)
    last = {owner: max(x.index for x in config.layers if x.owner == owner) for owner in owners}
    for layer in config.layers:
        rails = "".join(_rail(layer, owner, last[owner]) for owner in owners)
        console.print(f"{layer.index:4}  {_kind(layer):14}{rails}  {_says(layer, held)}", soft_wrap=True)
    console.print()


def _kind(layer: Layer) -> str:
    return "full" if layer.window is None else f"window {layer.window}"


def _rail(layer: Layer, owner: int, last: int) -> str:
    if layer.index == owner:
        return "o" if last == owner else "O"
    if layer.owner == owner:
        return "+"
    return "|" if owner < layer.index < last else " "


def _says(layer: Layer, held: dict[int, int]) -> str:
    return f"owns K/V: {_mib(held[layer.index])} MiB" if layer.owns else f"reads layer {layer.owner}"


def table() -> list[dict[str, Any]]:
    """One row a pattern that exists at this depth."""
    rows = []
    for name in PATTERNS:
        try:
            rows.append(row(name, config(name)))
        except ValueError as why:
            if "needs at least" not in str(why):
                raise
    return rows


def row(name: str, config: ModelConfig) -> dict[str, Any]:
    """Owners and bytes of one sequence of `--tokens` tokens; with --live read off cache arrays."""
    full = sum(config.layers[i].window is None for i in config.owners)
    plain = dataclasses.replace(config, kv_wiring="standard")
    count = live_bytes if FLAGS.live else _formula
    whole, windowed = count(config, windowed=False), count(config, windowed=True)
    return {
        "pattern": name,
        "full_owners": full,
        "sliding_owners": len(config.owners) - full,
        "token_bytes": kv_bytes(config, 1, FLAGS.dtype, windowed=False),
        "bytes_without_windows": whole,
        "bytes": windowed,
        "standard_over_this": kv_bytes(plain, FLAGS.tokens, FLAGS.dtype) / windowed,
        "counted_on": "live cache arrays" if FLAGS.live else "formula",
    }


def _formula(config: ModelConfig, windowed: bool) -> int:
    return kv_bytes(config, FLAGS.tokens, FLAGS.dtype, windowed)


def live_bytes(config: ModelConfig, windowed: bool) -> int:
    """Bytes of an allocated cache of one sequence; `Contiguous` has no windows, `Ring` has."""
    from mixattn.cache import Contiguous, Ring  # the rest of this command needs no jax

    return sum((Ring if windowed else Contiguous).init(config, 1, FLAGS.tokens).nbytes().values())


def grid(rows: list[dict[str, Any]]) -> Table:
    shape = f"{FLAGS.kv_heads} K/V heads of {FLAGS.head_dim}, {FLAGS.dtype}, window {FLAGS.window:,}"
    title = f"K/V of {FLAGS.tokens:,} tokens ({shape})\ncounted by: {rows[0]['counted_on']}"
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    out.add_column("pattern", no_wrap=True)
    for heading in ("full", "sliding", "B/token", "MiB flat", "MiB", "saves"):
        out.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        sizes = (_mib(r["bytes_without_windows"]), _mib(r["bytes"]), f"{r['standard_over_this']:.1f}x")
        out.add_row(
            r["pattern"], str(r["full_owners"]), str(r["sliding_owners"]), f"{r['token_bytes']:,}", *sizes
        )
    return out


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"
