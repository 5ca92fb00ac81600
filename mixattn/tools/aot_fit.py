"""Whether a model's serving steps fit a chip, found by compiling them for it: no chip, no weights needed.

    python -m mixattn.tools.aot_fit --config=configs/paper_5b.py --target=v6e,h100 --batch=16 --context=8192
    python -m mixattn.tools.aot_fit --config=configs/demo.py --json

Two steps over paged K/V, as the engine runs them: `decode` (every row one token, all contexts full) and
`prefill` (one chunk of one row). Needs the compilers of the aot-tpu / aot-cuda extras (`make aot` sets up an
environment with both); a target whose compiler is missing is named and left out. Exit code 1 if a step does
not fit. What a training step needs is asked with `python -m train.aot_fit`.

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

from mixattn.cache import Kind, Paged
from mixattn.hf.tensors import abstract
from mixattn.spec import ModelConfig
from mixattn.tools import cli
from pallas_kernels import aot

type Lower = Callable[[], Any]


def serving_steps(
    config: ModelConfig, chip: str, *, batch: int, context: int, chunk: int, page: int
) -> dict[str, Lower]:
    """What to lower for `chip`, by the step's name.

    Args:
      batch: rows that decode together, each holding up to `context` tokens.
      chunk: tokens of a prefill step. page: positions of a page.
    """
    graphdef, params = abstract(config)

    def step(params, cache, tokens_BT):
        model = nnx.merge(graphdef, params)
        out = model.forward(tokens_BT, cache=cache, last_only=True)
        return out.cache, jnp.argmax(model.head(out.hidden_BTD[:, 0]), axis=-1)

    def lower(rows: int, T: int):
        with aot.target(chip):
            cache = jax.eval_shape(
                lambda: _rows(_pools(config, batch, context, chunk, page), rows, -(-context // page))
            )
        tokens_BT = jax.ShapeDtypeStruct((rows, T), jnp.int32)
        return aot.lower_for(chip, step, *aot.shapes_on(chip, params, cache, tokens_BT), donate_argnums=1)

    return {
        "decode": functools.partial(lower, batch, 1),
        "prefill": functools.partial(lower, 1, min(chunk, context)),
    }


def _pools(config: ModelConfig, batch: int, context: int, chunk: int, page: int) -> Paged:
    """Pools with a page for every token that must be held, and the null page."""
    full = -(-context // page)
    near = min(full, (config.window - 1 + chunk + page - 2) // page + 1)
    pages: dict[Kind, int] = {"full": 1 + batch * full, "sliding": 1 + batch * near}
    sizes: dict[Kind, int] = {"full": page, "sliding": page}
    table: dict[Kind, int] = {"full": full, "sliding": full}
    return Paged.init(config, pages=pages, page_size=sizes, batch=batch, table_pages=table)


def _rows(cache: Paged, rows: int, pages: int) -> Paged:
    """The same pools, asked about `rows` rows."""
    tables: dict[Kind, jax.Array] = {kind: jnp.zeros((rows, pages), jnp.int32) for kind in cache.tables}
    return cache.with_rows(tables, *jnp.zeros((2, rows), jnp.int32))


def report(targets: Iterable[str], steps_of: Callable[[str], dict[str, Lower]], *, as_json: bool) -> bool:
    """Prints a line a step and target; whether all of them fit.

    Raises:
      ValueError: no target's compiler is installed, or a target is unknown.
    """
    known = ", ".join(aot.CHIPS)
    targets = list(targets)
    if wrong := [chip for chip in targets if chip not in aot.CHIPS]:
        raise ValueError(f"--target names {wrong[0]!r}; it must be among {known}")
    here = [chip for chip in targets if not aot.missing(chip)]
    for chip in targets:
        if why := aot.missing(chip):
            print(f"{chip}: left out, {why}", file=sys.stderr)
    if not here:
        raise ValueError(f"nothing can be compiled for {', '.join(targets)}: {aot.missing(targets[0])}")
    if not as_json:
        print(f"{'target':7} {'step':10} {'arguments':>10} {'temporary':>10} {'total':>10} {'has':>10}   GiB")
    fits = []
    for chip in here:
        for name, lower in steps_of(chip).items():
            found = aot.compiled_memory(chip, lower)
            fits.append(found.fits)
            row = {"target": chip, "step": name, **found._asdict(), "fits": found.fits}
            print(json.dumps(row) if as_json else line(row), flush=True)
    return all(fits)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    names = ("arguments", "temporaries", "total", "capacity")
    sizes = " ".join(f"{'?' if row[n] is None else format(row[n] / 2**30, '.2f'):>10}" for n in names)
    verdict = "fits" if row["fits"] else f"does not fit{': ' * bool(row['why'])}{row['why']}"
    return f"{row['target']:7} {row['step']:10} {sizes}   {verdict}"


def define_flags() -> None:
    logging.set_verbosity(logging.ERROR)  # the cache is switched off and on for every program, and says so
    cli.define_config()
    flags.DEFINE_list("target", "v5e,v6e,h100", "Chips to compile for.")
    flags.DEFINE_bool("json", False, "Print a JSON line a step instead of a table; sizes in bytes.")


def main() -> None:
    config = cli.model_config()
    given = flags.FLAGS
    sizes = {name: given[name].value for name in ("batch", "context", "chunk", "page")}
    steps_of = functools.partial(serving_steps, config, **sizes)
    sys.exit(0 if report(given.target, steps_of, as_json=given.json) else 1)


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_integer("batch", 16, "Rows that decode together.", lower_bound=1)
    flags.DEFINE_integer("context", 8192, "Tokens each row holds.", lower_bound=1)
    flags.DEFINE_integer("chunk", 512, "Tokens a prefill step computes.", lower_bound=1)
    flags.DEFINE_integer("page", 64, "Positions of a page.", lower_bound=8)
    cli.run(main)
