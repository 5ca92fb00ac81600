"""What pages cost: one decode step over paged KV beside the same step over contiguous slots, in turns."""

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
from mixattn.sample import argmax
from mixattn.spec import ModelConfig
from serving.bench import Row, Size, network, row
from serving.bench.peers import LLAMA

ROWS, CONTEXT, PAGE = 32, 512, 64
STEPS = 24  # the last ones before the context is full


def pages(size: Size) -> list[Row]:
    """Milliseconds a step of 32 rows at a context of 512; a small vocabulary is the harder case."""
    rows = []
    for vocab in (1024, LLAMA.vocab_size):
        config = dataclasses.replace(LLAMA, vocab_size=vocab)
        model = network(config)
        sides = {name: _stepper(model, make(config)) for name, make in CACHES.items()}
        assert len({tuple(run()[1]) for run in sides.values()}) == 1, "the two sides say different tokens"
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(STEPS - 1):
            for name, run in sides.items():
                taken[name].append(run()[0])
        what = f"vocabulary {vocab}"
        for name, seconds in taken.items():
            rows.append(row("pages", f"{what}, {name}: median", 1e3 * median(seconds), "ms a step"))
        for least, named in ((median, "medians"), (min, "minima")):
            ratio = least(taken["pages"]) / least(taken["contiguous"])
            rows.append(row("pages", f"{what}, pages over contiguous: {named}", ratio, "", goal="<= 1.15"))
    return rows


def _contiguous(config: ModelConfig) -> Contiguous:
    cache = Contiguous.init(config, ROWS, CONTEXT)
    return dataclasses.replace(cache, start_B=jnp.full(ROWS, CONTEXT - STEPS, jnp.int32), empty=False)


def _paged(config: ModelConfig) -> Paged:
    """Every page of the pool in use, in random order."""
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


CACHES: dict[str, Callable[[ModelConfig], Any]] = {"contiguous": _contiguous, "pages": _paged}


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def _step(graphdef, params, token_B, cache):
    step = nnx.merge(graphdef, params).forward(token_B[:, None], cache=cache)
    return argmax(nnx.merge(graphdef, params).head(step.hidden_BTD[:, 0])), step.cache


def _stepper(model, cache) -> Callable[[], tuple[float, list[int]]]:
    """Seconds and tokens of the next step."""
    graphdef, params = nnx.split(model)
    state = [jnp.arange(ROWS, dtype=jnp.int32), cache]
    run = _step.lower(graphdef, params, *state).compile()

    def step() -> tuple[float, list[int]]:
        began = time.perf_counter()
        state[:] = run(params, *state)
        jax.block_until_ready(state[0])
        return time.perf_counter() - began, state[0].tolist()

    return step
