"""The cost of paging: a decode step over paged KV beside the same step over contiguous slots, interleaved."""

import dataclasses
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import Contiguous, Paged
from mixattn.model import Transformer
from mixattn.sample import argmax
from mixattn.spec import ModelConfig
from pallas_kernels import measure
from serving.bench import Row, Size, network, row
from serving.bench.peers import LLAMA

ROWS, CONTEXT, PAGE = 32, 512, 64
STEPS = 24  # the last ones before the context is full; the first is a warm-up


def pages(size: Size) -> list[Row]:
    """Milliseconds per step of 32 rows at a context of 512; a small vocabulary is the harder case."""
    rows = []
    for vocab in (1024, LLAMA.vocab_size):
        config = dataclasses.replace(LLAMA, vocab_size=vocab)
        model = network(config)
        sides = {name: _stepper(model, make(config)) for name, make in CACHES.items()}
        steps = measure.interleave(sides, STEPS, warmup=0)
        same = steps["pages"][0][1] == steps["contiguous"][0][1]
        assert same, "the two sides generate different tokens"
        taken = {name: [seconds for seconds, _ in found[1:]] for name, found in steps.items()}
        what = f"vocabulary {vocab}"
        for name, seconds in taken.items():
            rows.append(row("pages", f"{what}, {name}: median", 1e3 * median(seconds), "ms a step"))
        for of, named in ((median, "medians"), (min, "minima")):
            ratio = of(taken["pages"]) / of(taken["contiguous"])
            rows.append(row("pages", f"{what}, pages over contiguous: {named}", ratio, "", goal="<= 1.15"))
    return rows


def _contiguous(config: ModelConfig) -> Contiguous:
    cache = Contiguous.init(config, ROWS, CONTEXT)
    return dataclasses.replace(cache, start_B=jnp.full(ROWS, CONTEXT - STEPS, jnp.int32), empty=False)


def _paged(config: ModelConfig) -> Paged:
    """A cache that uses every page of the pool, in random order."""
    each = CONTEXT // PAGE
    cache = Paged.init(
        config,
        pages={"full": ROWS * each + 1},
        page_size={"full": PAGE},
        batch=ROWS,
        table_pages={"full": each},
    )
    table_BP = 1 + np.random.default_rng(0).permutation(ROWS * each).reshape(ROWS, each).astype(np.int32)
    start_B = jnp.full(ROWS, CONTEXT - STEPS, jnp.int32)
    return cache.with_rows({"full": jnp.asarray(table_BP)}, start_B, jnp.ones(ROWS, jnp.int32))


CACHES: dict[str, Callable[[ModelConfig], Contiguous | Paged]] = {"contiguous": _contiguous, "pages": _paged}


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def _step(
    graphdef: nnx.GraphDef, params: nnx.State, token_B: jax.Array, cache: Contiguous | Paged
) -> tuple[jax.Array, Contiguous | Paged]:
    step = nnx.merge(graphdef, params).forward(token_B[:, None], cache=cache)
    return argmax(nnx.merge(graphdef, params).head(step.hidden_BTD[:, 0])), step.cache


def _stepper(model: Transformer, cache: Contiguous | Paged) -> Callable[[], tuple[float, list[int]]]:
    """Seconds and tokens of the next step."""
    graphdef, params = nnx.split(model)
    state: list[Any] = [jnp.arange(ROWS, dtype=jnp.int32), cache]
    run = _step.lower(graphdef, params, *state).compile()

    def step() -> tuple[float, list[int]]:
        start = time.perf_counter()
        state[:] = run(params, *state)
        jax.block_until_ready(state[0])
        return time.perf_counter() - start, state[0].tolist()

    return step
