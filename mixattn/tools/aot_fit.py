"""Checks whether a model's serving steps fit a chip's memory, by compiling them without the chip or weights.

    python -m mixattn.tools.aot_fit --config=configs/paper_5b.py --target=v6e,h100 --batch=16 --context=8192
    python -m mixattn.tools.aot_fit --config=configs/demo.py --json

Two steps over paged K/V are compiled as the engine runs them: `decode` (one token per row, all contexts full)
and `prefill` (one chunk of one row). The compilers are in the aot-tpu and aot-cuda extras; `make aot` sets up
an environment with both. A target without its compiler is reported and skipped. The exit code is 1 if a step
does not fit. `python -m train.aot_fit` checks training steps.

Axes: B rows, T tokens of a step, P pages of a row.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from flax import nnx

from mixattn.cache import Cache, Kind, Paged
from mixattn.hf.tensors import abstract_model
from mixattn.spec import ModelConfig
from mixattn.tools import cli
from pallas_kernels import aot

type Lower = Callable[[], Any]  # -> jax.stages.Lowered


def serving_steps(
    config: ModelConfig, chip: str, *, batch: int, context: int, chunk: int, page: int
) -> dict[str, Lower]:
    """Functions that lower the serving steps for `chip`, by the step's name.

    Args:
      batch: rows that decode together, each holding up to `context` tokens.
      chunk: tokens of a prefill step.
      page: tokens per page.
    """
    graphdef, params = abstract_model(config)

    def step(params: nnx.State, cache: Paged, tokens_BT: jax.Array) -> tuple[Cache | None, jax.Array]:
        model = nnx.merge(graphdef, params)
        out = model.forward(tokens_BT, cache=cache, last_only=True)
        return out.cache, jnp.argmax(model.head(out.hidden_BTD[:, 0]), axis=-1)

    def lower(rows: int, T: int) -> Any:
        with aot.target(chip):
            cache = jax.eval_shape(
                lambda: _with_rows(_pools(config, batch, context, chunk, page), rows, -(-context // page))
            )
        tokens_BT = jax.ShapeDtypeStruct((rows, T), jnp.int32)
        return aot.lower_for(chip, step, *aot.shapes_on(chip, params, cache, tokens_BT), donate_argnums=1)

    return {
        "decode": functools.partial(lower, batch, 1),
        "prefill": functools.partial(lower, 1, min(chunk, context)),
    }


def _pools(config: ModelConfig, batch: int, context: int, chunk: int, page: int) -> Paged:
    """Pools with pages for every token that a full batch must hold, and the null page."""
    full = -(-context // page)
    # The window and the chunk, at worst-case alignment to page boundaries.
    sliding = min(full, (config.window - 1 + chunk + page - 2) // page + 1)
    pages: dict[Kind, int] = {"full": 1 + batch * full, "sliding": 1 + batch * sliding}
    sizes: dict[Kind, int] = {"full": page, "sliding": page}
    table_pages: dict[Kind, int] = {"full": full, "sliding": full}
    return Paged.init(config, pages=pages, page_size=sizes, batch=batch, table_pages=table_pages)


def _with_rows(cache: Paged, rows: int, pages: int) -> Paged:
    """The same pools with empty tables for `rows` rows."""
    tables: dict[Kind, jax.Array] = {kind: jnp.zeros((rows, pages), jnp.int32) for kind in cache.tables}
    return cache.with_rows(tables, *jnp.zeros((2, rows), jnp.int32))


def report(targets: Iterable[str], steps_of: Callable[[str], dict[str, Lower]], *, as_json: bool) -> bool:
    """Prints one line per step and target. Returns whether all steps fit.

    Raises:
      ValueError: a target is unknown, or no target's compiler is installed.
    """
    known = ", ".join(aot.CHIPS)
    targets = list(targets)
    if unknown := [chip for chip in targets if chip not in aot.CHIPS]:
        raise ValueError(f"--target names {unknown[0]!r}; it must be among {known}")
    available = [chip for chip in targets if not aot.missing(chip)]
    for chip in targets:
        if why := aot.missing(chip):
            print(f"{chip}: skipped, {why}", file=sys.stderr)
    if not available:
        raise ValueError(f"nothing can be compiled for {', '.join(targets)}: {aot.missing(targets[0])}")
    if not as_json:
        print(f"{'target':7} {'step':10} {'arguments':>10} {'temporary':>10} {'total':>10} {'has':>10}   GiB")
    fits = []
    for chip in available:
        for name, lower in steps_of(chip).items():
            memory = aot.compiled_memory(chip, lower)
            fits.append(memory.fits)
            row = {"target": chip, "step": name, **memory._asdict(), "fits": memory.fits}
            print(json.dumps(row) if as_json else _format_row(row), flush=True)
    return all(fits)


def _format_row(row: dict[str, Any]) -> str:
    names = ("arguments", "temporaries", "total", "capacity")
    sizes = " ".join(f"{'?' if row[n] is None else format(row[n] / 2**30, '.2f'):>10}" for n in names)
    verdict = "fits" if row["fits"] else f"does not fit{': ' * bool(row['why'])}{row['why']}"
    return f"{row['target']:7} {row['step']:10} {sizes}   {verdict}"


def define_flags() -> None:
    """Declares the flags that serving and training checks share."""
    logging.set_verbosity(logging.ERROR)  # jax logs every switch of the compilation cache
    cli.define_config()
    flags.DEFINE_list("target", "v5e,v6e,h100", "Chips to compile for, comma-separated.")
    flags.DEFINE_bool("json", False, "Print one JSON line per step instead of a table; sizes in bytes.")


def main() -> None:
    config = cli.model_config()
    values = flags.FLAGS
    sizes = {name: values[name].value for name in ("batch", "context", "chunk", "page")}
    steps_of = functools.partial(serving_steps, config, **sizes)
    sys.exit(0 if report(values.target, steps_of, as_json=values.json) else 1)


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_integer("batch", 16, "Rows that decode together.", lower_bound=1)
    flags.DEFINE_integer("context", 8192, "Tokens per row.", lower_bound=1)
    flags.DEFINE_integer("chunk", 512, "Tokens of a prefill step.", lower_bound=1)
    flags.DEFINE_integer("page", 64, "Tokens per page.", lower_bound=8)
    cli.run(main)
