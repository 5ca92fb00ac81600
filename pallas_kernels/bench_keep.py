"""Kernels of eviction: a chunk's votes, a step over slabs with its victims, and the move to a slab.

python -m pallas_kernels.bench --only=keep --out=results/kernels_keep.csv
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import heavy_hitter, paged, paged_votes
from pallas_kernels.bench_case import BenchCase, Thunk, arrays, bind, pool_of
from pallas_kernels.heavy_hitter import Slab, SlabLimits
from pallas_kernels.paged import Pool, by_head

N, K, H, PAGE = 8, 4, 32, 16


def keep_chunk() -> BenchCase:
    """What a chunk's votes cost beside its attention: from one pass, from a second one, from all weights."""
    C, context = 256, 2048
    P = context // PAGE
    pool = pool_of(1 + P, PAGE, K, H)
    table = jnp.asarray(1 + np.random.default_rng(0).permutation(P).reshape(1, P), jnp.int32)
    (q,) = arrays((1, C, N, H))
    rows = q, pool, table, jnp.full(1, context - C), jnp.full(1, C)

    def two_passes(
        q: jax.Array, pool: Pool, table: jax.Array, start: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        out, lse = paged.attend(q, pool, table, start, count, return_lse=True)
        return out, paged_votes.column_sums(q, pool, table, start, count, lse)

    def all_weights(*rows: Any) -> tuple[jax.Array, jax.Array]:
        out, weights_BCNS = paged.attend(*rows, return_weights=True)
        return out, jnp.sum(weights_BCNS.reshape(1, C, K, N // K, -1), axis=(1, 3))

    return BenchCase(
        "keep_chunk",
        {
            "attend": bind(paged.attend, *rows),
            "attend_and_votes": bind(paged_votes.attend, *rows),
            "attend_then_votes": bind(two_passes, *rows),
            "attend_with_all_weights": bind(all_weights, *rows),
        },
        "attend",
        f"chunk of {C} at {context}, pages of {PAGE}, {N} query / {K} kv heads of {H}, float32; all_weights: "
        "a gather of the prefix and an array of chunk x prefix",
        rounds=15,
    )


def keep_step() -> BenchCase:
    """A step over slabs in pages: write and attention, then scores, then victims; in place."""
    B, keys = 32, 464
    P = keys // PAGE
    pool = pool_of(1 + B * P, PAGE, K, H)
    q, k, v = arrays((B, 1, N, H), (B, K, H), (B, K, H))
    table = 1 + jnp.arange(B * P).reshape(B, P)
    held, one = jnp.full(B, keys - 1), jnp.ones(B, jnp.int32)
    position = jnp.broadcast_to(jnp.arange(keys).at[-1].set(-1), (B, K, keys))
    start = pool, jnp.asarray(np.random.default_rng(0).random((B, K, keys), np.float32)), position

    def step(state: Any, *, weights: bool, victims: bool) -> tuple[Any, jax.Array]:
        pool, score_BKR, position_BKR = state
        place_BK = jnp.argmax(position_BKR < 0, axis=-1)
        page_BK = table[:, :1] + place_BK // PAGE
        pool = by_head.write(pool, k, v, page_BK, place_BK % PAGE)
        got: Any = paged.attend(q, pool, table, held, one, return_weights=weights, unshared=True)
        if not weights:
            return (pool, score_BKR, position_BKR), got
        out, weights_B1NR = got
        score_BKR = score_BKR + jnp.sum(weights_B1NR.reshape(B, K, N // K, keys), axis=2)
        if victims:
            newest_B11 = jnp.max(position_BKR, axis=(1, 2), keepdims=True) + 1
            here = jnp.arange(keys) == place_BK[..., None]
            full = Slab(
                jnp.zeros(0),
                jnp.zeros(0),
                jnp.where(here, 0, score_BKR),
                jnp.where(here, newest_B11, position_BKR),
                SlabLimits(keys // 2, keys - 1 - keys // 2),
            )
            slab = heavy_hitter.evict(full)
            score_BKR, position_BKR = slab.score_BKR, slab.position_BKR
        return (pool, score_BKR, position_BKR), out

    copied = pool_of(4 * B * P + 2, PAGE, K, H)  # a pool so large that its pages are copied
    return BenchCase(
        "keep_step",
        {
            "floor_read": bind(lambda k, v: (k.sum(), v.sum()), pool.keys, pool.values),
            "write_attend": chained(step, start, weights=False, victims=False),
            "write_attend_score": chained(step, start, weights=True, victims=False),
            "write_attend_score_evict": chained(step, start, weights=True, victims=True),
            "attend_weights_copied": bind(paged.attend, q, copied, table, held, one, return_weights=True),
        },
        "write_attend",
        f"decode over slabs of {keys} keys, B {B}, pages of {PAGE}, {N} query / {K} kv heads of {H}, float32",
        rounds=21,
    )


def keep_settle() -> BenchCase:
    """A prompt's best keys chosen and moved to its slab, of one layer, beside a read of what is moved."""
    B, runs = 32, dict[str, Thunk]()
    for context in (2048, 4096):
        R, P = context // 5 // PAGE * PAGE, context // PAGE
        slabs, prompt = pool_of(1 + B * R // PAGE, PAGE, K, H), pool_of(1 + P, PAGE, K, H)
        table = jnp.asarray(1 + np.random.default_rng(0).permutation(P), jnp.int32)
        (score,) = arrays((K, context))
        runs[f"floor_read_{context}"] = bind(lambda k, v: (k.sum(), v.sum()), *arrays((K, R, H), (K, R, H)))
        runs[f"choose_{context}"] = bind(lambda score, R=R: jax.lax.top_k(score, R)[1], score)

        state = slabs, prompt, table, score
        runs[f"choose_and_move_{context}"] = chained(_moved, state, R=R)
    return BenchCase(
        "keep_settle",
        runs,
        "floor_read_2048",
        f"a fifth of a prompt to a slab of its own among {B}, pages of {PAGE}, {K} kv heads of {H}, float32",
        rounds=21,
    )


def _moved(state: Any, *, R: int) -> tuple[Any, jax.Array]:
    slabs, prompt, table_P, score_KS = state
    index_KR = jax.lax.top_k(score_KS, R)[1]
    k_KRH, v_KRH = by_head.read(prompt, table_P[index_KR // PAGE], index_KR % PAGE)
    return (by_head.fill(slabs, jnp.int32(1), k_KRH, v_KRH), prompt, table_P, score_KS), index_KR


def chained(step: Callable[..., tuple[Any, Any]], state: Any, **options: Any) -> Thunk:
    """A call that takes the state that the call before it left, in place."""
    compiled = jax.jit(lambda state: step(state, **options), donate_argnums=0)
    states = [jax.tree.map(lambda x: x.copy(), state)]

    def call() -> Any:
        states[0], out = compiled(states[0])
        return states[0], out

    return call
