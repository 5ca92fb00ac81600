"""Scores and eviction of one layer, and one prompt's move to its slab."""

import dataclasses
import functools
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from pallas_kernels import measure
from serving.bench import Row, row
from serving.bench.keep.engines import ROWS, WIDE

if TYPE_CHECKING:
    from serving.engine.engine import Engine


def scores(engine: "Engine", context: int, rounds: int) -> list[Row]:
    """Scores and eviction of one layer beside write and attention over the same slabs."""
    import jax
    import jax.numpy as jnp

    from mixattn.cache.kept_pages import ScoredRows
    from pallas_kernels import paged

    assert engine.state.kept is not None
    owner, slab = next(iter(engine.state.kept.slabs.items()))
    slab = jax.tree.map(lambda x: x.copy(), slab)
    B, K, H, N = ROWS, WIDE.n_kv_heads, WIDE.head_dim, WIDE.n_heads
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, n, H)) for key, n in zip(keys, (N, K, K)))
    assert engine.slabs is not None
    slot, live, rules = jnp.arange(B), jnp.ones(B, bool), engine.slabs.rules
    at, one = jnp.full(B, context, jnp.int32), jnp.ones(B, jnp.int32)

    def attended(slab: Any, i: Any, weights: bool) -> Any:
        slab = slab.write(slot, at + i, live, k, v)
        held = jnp.maximum(slab.held() - 1, 0)
        got = paged.attend(
            q[:, None], slab.pool, slab.table(slot), held, one, return_weights=weights, unshared=True
        )
        return slab, got

    def plain(slab: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            slab, out = carry
            slab, got = attended(slab, i, False)
            # The token goes again: the slab stays as large as it is with eviction.
            gone = slab.position_ZKR == (at + i)[:, None, None]
            position = jnp.where(gone, -1, slab.position_ZKR)
            return dataclasses.replace(slab, position_ZKR=position), out + got

        return jax.lax.fori_loop(0, 8, body, (slab, jnp.zeros((B, 1, N, H))))

    def scored(slab: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            slab, out = carry
            slab, (got, weights) = attended(slab, i, True)
            weights_BKR = jnp.sum(weights.reshape(B, K, N // K, -1), axis=2)
            rows = ScoredRows(slot, jnp.zeros(B, jnp.int32), live)
            return slab.evicted(owner, rules, rows, weights_BKR), out + got

        return jax.lax.fori_loop(0, 8, body, (slab, jnp.zeros((B, 1, N, H))))

    runs = {"write + attend": jax.jit(plain), "scores + eviction": jax.jit(scored)}
    sides = {name: measure.timed(functools.partial(run, slab)) for name, run in runs.items()}
    taken = measure.interleave(sides, 2 * rounds)
    ms = {name: 1e3 * median(s) / 8 for name, s in taken.items()}
    ratio = median(taken["scores + eviction"]) / median(taken["write + attend"])
    least = min(taken["scores + eviction"]) / min(taken["write + attend"])
    detail = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())
    return [
        row(
            "keep",
            f"a layer at {context}: scores + eviction over write + attend",
            ratio,
            "",
            detail,
            "<= 1.4",
        ),
        row("keep", f"a layer at {context}: the same, minima", least, ""),
    ]


def settling(engine: "Engine", context: int, step_ms: float, rounds: int) -> list[Row]:
    """One prompt's move to its slab beside a decode step of the batch."""
    import jax
    import numpy as np

    from serving.engine.slab_programs import SlabPrograms

    programs = engine.programs
    assert isinstance(programs, SlabPrograms)
    blank = programs.blank_settle()
    table = np.arange(1, len(blank.table_P) + 1, dtype=np.int32)
    heavy = engine.config.keep.slab_tok // 2
    cut = np.tile(np.array([engine.config.keep.slab_tok - heavy, heavy, 0], np.int32), (len(blank.cut_O3), 1))
    batch = blank._replace(table_P=table, tokens=np.int32(context), votes_row=np.int32(1), cut_O3=cut)

    def seconds() -> float:
        start = time.perf_counter()
        engine.state = programs.settle(engine.state, batch)
        jax.block_until_ready(engine.state)
        return time.perf_counter() - start

    taken = [seconds() for _ in range(2 + 2 * rounds)][2:]
    ms = 1e3 * median(taken)
    share = ms / step_ms
    return [
        row("keep", f"settle of {context} tokens over a decode step", share, "", f"{ms:.2f} ms", "<= 0.05")
    ]
