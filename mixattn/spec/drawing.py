"""Draws a wiring layer by layer and tabulates the memory that wirings need.

    python -m mixattn.spec --pattern=ma_offset --n_layers=24       one wiring: drawing, bytes by owner
    python -m mixattn.spec --wiring=0s_0s_2_3s_3s_2 --window=64
    python -m mixattn.spec --table                                 every pattern at this depth
    python -m mixattn.spec --table --live                          the same, counted on allocated cache arrays

The defaults are the shapes of the MixAttention paper: 3 K/V heads of 128, bfloat16, windows of 1,024, 32,000
tokens. "MiB flat" is a cache without window support, which keeps every token of sliding layers; "saves" is
the standard pattern's bytes divided by this pattern's.
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

flags.DEFINE_enum("pattern", "ma_offset", list(PATTERNS), "Name of the pattern.")
flags.DEFINE_string("wiring", None, "A wiring string, in place of --pattern.")
flags.DEFINE_integer("n_layers", None, "Number of layers (default 24, or that of --wiring).", lower_bound=1)
flags.DEFINE_integer(
    "window", 1024, "Window of sliding layers, in tokens, including the query.", lower_bound=1
)
flags.DEFINE_integer("tokens", 32_000, "Tokens of the sequence.", lower_bound=1)
flags.DEFINE_integer("kv_heads", 3, "Key/value heads.", lower_bound=1)
flags.DEFINE_integer("head_dim", 128, "Size of a head.", lower_bound=2)
flags.DEFINE_string("dtype", "bfloat16", "Dtype of the cached keys and values.")
flags.DEFINE_bool("table", False, "Tabulate every pattern.")
flags.DEFINE_bool("live", False, "With --table: count bytes on allocated caches instead of by the formula.")
flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
FLAGS = flags.FLAGS


def run() -> None:
    cli.run(main)


def main() -> None:
    rows = (
        all_patterns()
        if FLAGS.table
        else [memory_row("(given)" if FLAGS.wiring else FLAGS.pattern, config())]
    )
    if FLAGS.json:
        print(json.dumps(rows, indent=2))
        return
    console = Console(highlight=False)
    if not FLAGS.table:
        draw(config(), console)
    console.print(memory_table(rows))


def config(pattern: str | None = None) -> ModelConfig:
    """The config that the flags describe; `pattern` replaces theirs."""
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
    """Prints one line per layer: its kind, the owner it reads, and a rail from each owner to its readers."""
    bytes_of = kv_bytes_by_owner(config, FLAGS.tokens, FLAGS.dtype)
    console.print(f"{config.wiring}\n", soft_wrap=True)
    owners = list(config.owners)
    last = {owner: max(x.index for x in config.layers if x.owner == owner) for owner in owners}
    for layer in config.layers:
        rails = "".join(_rail(layer, owner, last[owner]) for owner in owners)
        console.print(
            f"{layer.index:4}  {_kind(layer):14}{rails}  {_description(layer, bytes_of)}", soft_wrap=True
        )
    console.print()


def _kind(layer: Layer) -> str:
    return "full" if layer.window is None else f"window {layer.window}"


def _rail(layer: Layer, owner: int, last: int) -> str:
    if layer.index == owner:
        return "o" if last == owner else "O"
    if layer.owner == owner:
        return "+"
    return "|" if owner < layer.index < last else " "


def _description(layer: Layer, bytes_of: dict[int, int]) -> str:
    return f"owns K/V: {_mib(bytes_of[layer.index])} MiB" if layer.owns else f"reads layer {layer.owner}"


def all_patterns() -> list[dict[str, Any]]:
    """One row per pattern that exists at this depth."""
    rows = []
    for name in PATTERNS:
        try:
            rows.append(memory_row(name, config(name)))
        except ValueError as why:
            if "needs at least" not in str(why):
                raise
    return rows


def memory_row(name: str, config: ModelConfig) -> dict[str, Any]:
    """Owners and bytes of one sequence of `--tokens` tokens; with --live, of allocated caches."""
    full = sum(config.layers[i].window is None for i in config.owners)
    standard = dataclasses.replace(config, kv_wiring="standard")
    count = live_bytes if FLAGS.live else _formula
    unwindowed, windowed = count(config, windowed=False), count(config, windowed=True)
    return {
        "pattern": name,
        "full_owners": full,
        "sliding_owners": len(config.owners) - full,
        "token_bytes": kv_bytes(config, 1, FLAGS.dtype, windowed=False),
        "bytes_without_windows": unwindowed,
        "bytes": windowed,
        "standard_over_this": kv_bytes(standard, FLAGS.tokens, FLAGS.dtype) / windowed,
        "counted_on": "live cache arrays" if FLAGS.live else "formula",
    }


def _formula(config: ModelConfig, windowed: bool) -> int:
    return kv_bytes(config, FLAGS.tokens, FLAGS.dtype, windowed)


def live_bytes(config: ModelConfig, windowed: bool) -> int:
    """Bytes of an allocated cache of one sequence: `Ring` if `windowed`, otherwise `Contiguous`."""
    from mixattn.cache import Contiguous, Ring  # imports jax, which the rest of this command does not need

    return sum((Ring if windowed else Contiguous).init(config, 1, FLAGS.tokens).nbytes().values())


def memory_table(rows: list[dict[str, Any]]) -> Table:
    shape = f"{FLAGS.kv_heads} K/V heads of {FLAGS.head_dim}, {FLAGS.dtype}, window {FLAGS.window:,}"
    title = f"K/V of {FLAGS.tokens:,} tokens ({shape})\ncounted by: {rows[0]['counted_on']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("pattern", no_wrap=True)
    for heading in ("full", "sliding", "B/token", "MiB flat", "MiB", "saves"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        sizes = (_mib(r["bytes_without_windows"]), _mib(r["bytes"]), f"{r['standard_over_this']:.1f}x")
        table.add_row(
            r["pattern"], str(r["full_owners"]), str(r["sliding_owners"]), f"{r['token_bytes']:,}", *sizes
        )
    return table


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f}"
