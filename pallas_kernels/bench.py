"""Every op beside its floor, on this machine, into a CSV.

    python -m pallas_kernels.bench --out=results/kernels_cpu.csv        # about three minutes on one core
    python -m pallas_kernels.bench --only=attention --torch=PYTHON      # with torch as another baseline

A floor is the time of the unavoidable part alone, measured in the same run: matrix products over the blocks
that a window can see, or one read of the bytes that a decode step must read. `ratio` is the time over that of
the row named in `against`. Baselines and floors are interleaved with what they are compared with.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pallas_kernels import heavy_hitter, measure, paged, results
from pallas_kernels.attention import attention
from pallas_kernels.bench_case import BenchCase, Thunk, arrays, bind, pool_of
from pallas_kernels.bench_keep import keep_chunk, keep_settle, keep_step

FLAGS = flags.FLAGS

type Row = dict[str, Any]

LINE = "{op:20} {run:20} {median_ms:10.3f} ms {ratio:7.2f} x {against}"


def define_flags() -> None:
    flags.DEFINE_string("out", None, "CSV to write; nothing is written without it.")
    flags.DEFINE_string("only", "", "Run the groups whose name contains this.")
    flags.DEFINE_string("torch", None, "A Python with torch, to measure torch's attention too.")
    flags.DEFINE_bool("json", False, "Print JSON lines instead of a table.")


def main(argv: Sequence[str]) -> None:
    names = [name for name in GROUPS if FLAGS.only in name]
    if not names:
        print(f"error: --only={FLAGS.only} matches none of {', '.join(GROUPS)}", file=sys.stderr)
        sys.exit(2)
    rows: list[Row] = []
    for name in names:
        case = GROUPS[name]()
        print(f"{case.name}: {case.note}", file=sys.stderr)
        found = run(case)
        if FLAGS.torch and name == "attention_window":
            found += torch_rows(FLAGS.torch, found)
        for line in found:
            print(json.dumps(line) if FLAGS.json else LINE.format(**line))
        rows += found
    if FLAGS.out:
        results.write_csv(Path(FLAGS.out), rows, about="python -m pallas_kernels.bench", seed=0)


def run(case: BenchCase) -> list[Row]:
    """One row per callable: median and minimum, and the ratio to `case.against`."""
    sides = {name: measure.timed(call) for name, call in case.runs.items()}
    taken = measure.interleave(sides, case.rounds, warmup=2)
    base_s = statistics.median(taken[case.against])
    return [row(case.name, name, t, base_s, case.against, case.note) for name, t in taken.items()]


def row(op: str, run: str, seconds: Sequence[float], base_s: float, against: str, note: str) -> Row:
    return {
        "op": op,
        "run": run,
        **measure.milliseconds(seconds, digits=4),
        "ratio": round(statistics.median(seconds) / base_s, 3),
        "against": against,
        "rounds": len(seconds),
        "note": note,
    }


def dense(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, window: int | None) -> jax.Array:
    """Plain masked attention: all scores, a mask, a softmax."""
    B, T, N, H = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(B, T, k_BSKH.shape[2], -1, H) * H**-0.5
    score = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
    age = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    visible = (age >= 0) & (age < (window or T))
    weight = jax.nn.softmax(jnp.where(visible, score, -1e30), axis=-1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weight, v_BSKH).reshape(B, T, N, H)


def products(q_nRH: jax.Array, k_nSH: jax.Array) -> jax.Array:
    """The two matrix products of attention over n tiles, in sequence."""
    return jax.lax.map(lambda qk: (qk[0] @ qk[1].T) @ qk[1], (q_nRH, k_nSH))


def attention_window() -> BenchCase:
    T, N, K, H, W, block = 8192, 4, 1, 64, 1024, 128
    q, k, v = arrays((1, T, N, H), (1, T, K, H), (1, T, K, H))
    tiles = T // block * (W // block + 1)
    blocks = arrays((tiles, block * N // K, H), (tiles, block, H))
    return BenchCase(
        "attention_window",
        {
            "floor_products": bind(products, *blocks),
            "xla": bind(attention, q, k, v, window=W, backend="xla"),
            "dense_masked": bind(dense, q, k, v, window=W),
        },
        "floor_products",
        f"forward, T {T}, W {W}, {N} query / {K} kv heads of {H}, float32; "
        f"floor: both products over the {tiles} tiles of {block} queries x {block} keys in reach",
        rounds=3,
    )


def gradient(
    fn: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(fn, q, k, v)[1](dout)


def attention_training() -> BenchCase:
    q, k, v = arrays((4, 256, 2, 64), (4, 256, 1, 64), (4, 256, 1, 64))
    runs = {}
    for kind, window in (("full", None), ("window", 64)):
        ours, theirs = (functools.partial(f, window=window) for f in (attention, dense))
        runs[f"{kind}_xla"] = bind(functools.partial(gradient, ours), q, k, v, q)
        runs[f"{kind}_dense_masked"] = bind(functools.partial(gradient, theirs), q, k, v, q)
    note = "forward and backward, B 4, T 256, W 64, 2 query / 1 kv heads of 64, float32"
    return BenchCase("attention_training", runs, "full_dense_masked", note, rounds=21)


def decode_at(
    context: int, B: int, N: int, K: int, H: int, page: int, window: int | None
) -> tuple[Thunk, paged.Pool]:
    """A decode step of B rows whose pages are in random order; with a window only visible pages exist."""
    P = context // page
    held = P if window is None else min(P, (window - 2) // page + 2)
    rng = np.random.default_rng(0)
    table = np.zeros((B, P), np.int32)
    table[:, P - held :] = 1 + rng.permutation(B * held).reshape(B, held)
    pool = pool_of(1 + B * held, page, K, H, window=window)
    (q,) = arrays((B, 1, N, H))
    start = np.full(B, context - 1, np.int32)
    return bind(paged.attend, q, pool, table, start, np.ones(B, np.int32), window=window), pool


def decode_window() -> BenchCase:
    runs = {}
    for context in (2048, 8192, 32768):
        runs[f"context_{context}"], _ = decode_at(context, 8, 8, 2, 64, 16, 1024)
    note = "decode, B 8, W 1024, pages of 16, 8 query / 2 kv heads of 64, float32"
    return BenchCase("decode_window", runs, "context_2048", note, rounds=21)


def contiguous(q_BKGH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array) -> jax.Array:
    score = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH)
    return jnp.einsum("BKGS,BKSH->BKGH", jax.nn.softmax(score, axis=-1), v_BKSH)


def decode_full() -> BenchCase:
    B, N, K, H, context = 32, 8, 4, 32, 2048
    pagewise, pool = decode_at(context, B, N, K, H, 64, None)
    gathered, _ = decode_at(context, B, N, K, H, 64, context)  # a window selects the gathering path
    q, k, v = arrays((B, K, N // K, H), (B, K, context, H), (B, K, context, H))
    return BenchCase(
        "decode_full",
        {
            "floor_read": bind(lambda k, v: (k.sum(), v.sum()), pool.keys, pool.values),
            "xla_pagewise": pagewise,
            "xla_gathered": gathered,
            "contiguous": bind(contiguous, q, k, v),
        },
        "floor_read",
        f"decode, B {B}, context {context}, pages of 64, {N} query / {K} kv heads of {H}, float32; "
        f"floor: one sum over {pool.nbytes >> 20} MiB; contiguous: the same without pages",
        rounds=15,
    )


def column_sums() -> BenchCase:
    T, N, K, H = 2048, 4, 1, 64
    q, k, v = arrays((1, T, N, H), (1, T, K, H), (1, T, K, H))
    _, lse = attention(q, k, v, return_lse=True)
    runs = {
        "forward": bind(attention, q, k, v),
        "column_sums": bind(heavy_hitter.column_sums, q, k, lse),
    }
    note = f"T {T}, causal, {N} query / {K} kv heads of {H}, float32"
    return BenchCase("column_sums", runs, "forward", note, rounds=9)


def slab_decode() -> BenchCase:
    B, K, G, H, slots = 8, 2, 4, 64, 1024
    q, k, v = arrays((B, K * G, H), (B, K, slots, H), (B, K, slots, H))
    position = jnp.broadcast_to(jnp.arange(slots), (B, K, slots))
    limits = heavy_hitter.SlabLimits(slots // 2, slots - slots // 2 - 1)
    slab = heavy_hitter.Slab(k, v, jnp.zeros((B, K, slots)), position, limits)
    at = jnp.full(B, slots)

    def step(q: jax.Array, slab: heavy_hitter.Slab, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, slab = heavy_hitter.attend(q, slab, at)
        return out, heavy_hitter.evict(slab).position_BKR

    runs = {
        "without_scores": bind(contiguous, q.reshape(B, K, G, H), k, v),
        "attend_and_score": bind(
            lambda q, slab, at: heavy_hitter.attend(q, slab, at)[1].score_BKR, q, slab, at
        ),
        "attend_score_evict": bind(step, q, slab, at),
    }
    note = f"decode over a slab of {slots} slots, B {B}, {K * G} query / {K} kv heads of {H}, float32"
    return BenchCase("slab_decode", runs, "without_scores", note, rounds=21)


GROUPS: dict[str, Callable[[], BenchCase]] = {
    fn.__name__: fn
    for fn in (
        attention_window,
        attention_training,
        decode_window,
        decode_full,
        column_sums,
        slab_decode,
        keep_chunk,
        keep_step,
        keep_settle,
    )
}

TORCH = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
T, N, H, W = 8192, 4, 64, 1024
q, k, v = (torch.randn(1, N, T, H) for _ in range(3))
age = torch.arange(T)[:, None] - torch.arange(T)[None]
mask = (age >= 0) & (age < W)
times = []
for _ in range(4):
    start = time.perf_counter()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    times.append(time.perf_counter() - start)
print(*times[1:])
"""


def torch_rows(python: str, found: list[Row]) -> list[Row]:
    """torch's attention with the window as a mask, in its own interpreter with the same number of threads."""
    threads = str(len(os.sched_getaffinity(0)))
    done = subprocess.run([python, "-c", TORCH, threads], capture_output=True, text=True, check=True)
    seconds = [float(x) for x in done.stdout.split()]
    base_s = 1e-3 * next(r for r in found if r["run"] == found[0]["against"])["median_ms"]
    return [row("attention_window", "torch_sdpa", seconds, base_s, found[0]["against"], found[0]["note"])]


if __name__ == "__main__":
    define_flags()
    app.run(main)
