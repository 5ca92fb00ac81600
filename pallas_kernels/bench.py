"""Every op beside its floor, on this machine, into a CSV.

  python -m pallas_kernels.bench --out=results/kernels_cpu.csv        # about three minutes on one core
  python -m pallas_kernels.bench --only=attention --torch=PYTHON      # a Python with torch: one more rival

A floor is what the machine needs for the unavoidable part alone, measured in the same run: matrix products
over the blocks a window can see, or one read of the bytes a decode step must read. `ratio` is time over the
time of the row named in `against`. Rivals and floors are interleaved with what they are compared with.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import heavy_hitter, paged, results
from pallas_kernels.attention import attention

type Thunk = Callable[[], object]

LINE = "{op:20} {run:20} {median_ms:10.3f} ms {ratio:7.2f} x {against}"


class BenchCase(NamedTuple):
    """Runs measured together, and which of them each is set against."""

    name: str
    runs: dict[str, Thunk]
    against: str
    note: str
    rounds: int = 7


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; nothing is written without it")
    parser.add_argument("--only", default="", help="run groups whose name contains this")
    parser.add_argument("--torch", help="a Python with torch in it, to measure torch's attention too")
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")
    options = parser.parse_args(argv)
    rows: list[dict] = []
    names = [name for name in GROUPS if options.only in name]
    if not names:
        parser.error(f"--only={options.only} matches none of {', '.join(GROUPS)}")
    for name in names:
        group = GROUPS[name]()
        print(f"{group.name}: {group.note}", file=sys.stderr)
        found = measure(group)
        if options.torch and name == "attention_window":
            found += torch_rows(options.torch, found)
        for row in found:
            print(json.dumps(row) if options.json else LINE.format(**row))
        rows += found
    if options.out:
        results.write_csv(options.out, rows, about="python -m pallas_kernels.bench", seed=0)


def measure(group: BenchCase) -> list[dict]:
    """Medians and minima of interleaved runs, after two warm-up calls each."""
    taken: dict[str, list[float]] = {name: [] for name in group.runs}
    for run in group.runs.values():
        jax.block_until_ready(run())
        jax.block_until_ready(run())
    for _ in range(group.rounds):
        for name, run in group.runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            taken[name].append(1e3 * (time.perf_counter() - start))
    base = statistics.median(taken[group.against])
    return [row(group.name, name, times, base, group.against, group.note) for name, times in taken.items()]


def row(op, run, times_ms, base_ms, against, note) -> dict:
    median = statistics.median(times_ms)
    return {
        "op": op,
        "run": run,
        "median_ms": round(median, 4),
        "min_ms": round(min(times_ms), 4),
        "ratio": round(median / base_ms, 3),
        "against": against,
        "rounds": len(times_ms),
        "note": note,
    }


def arrays(*shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def bind(fn, *args, **options) -> Thunk:
    """A jitted call with its arguments on the device already."""
    compiled = jax.jit(functools.partial(fn, **options))
    return lambda: compiled(*args)


def dense(q_BTNH, k_BSKH, v_BSKH, window):
    """What one would write without this package: all scores, a mask, a softmax."""
    B, T, N, H = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(B, T, k_BSKH.shape[2], -1, H) * H**-0.5
    score = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
    age = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    seen = (age >= 0) & (age < (window or T))
    weight = jax.nn.softmax(jnp.where(seen, score, -1e30), axis=-1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weight, v_BSKH).reshape(B, T, N, H)


def products(q_nRH, k_nSH):
    """The two products of attention over n tiles, one tile after the other, and nothing else."""
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


def gradient(fn, q, k, v, dout):
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


def pool_of(pages, page, K, H, **options):
    pool = paged.init(pages, page, K, H, "float32", **options)
    keys, values = arrays(pool.keys.shape, pool.values.shape)
    return paged.Pool(keys, values, pool.layout)


def decode_at(context, B, N, K, H, page, window):
    """A decode step of B rows whose pages lie in random order. With a window only pages in view exist."""
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


def contiguous(q_BKGH, k_BKSH, v_BKSH):
    score = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH)
    return jnp.einsum("BKGS,BKSH->BKGH", jax.nn.softmax(score, axis=-1), v_BKSH)


def decode_full() -> BenchCase:
    B, N, K, H, context = 32, 8, 4, 32, 2048
    run, pool = decode_at(context, B, N, K, H, 64, None)
    gathered, _ = decode_at(context, B, N, K, H, 64, context)  # as if it had a window: rows, copied
    q, k, v = arrays((B, K, N // K, H), (B, K, context, H), (B, K, context, H))
    return BenchCase(
        "decode_full",
        {
            "floor_read": bind(lambda k, v: (k.sum(), v.sum()), pool.keys, pool.values),
            "xla_pagewise": run,
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
    slab = heavy_hitter.Slab(k, v, jnp.zeros((B, K, slots)), position, slots // 2, slots - slots // 2 - 1)
    at = jnp.full(B, slots)

    def step(q, slab, at):
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
    for fn in (attention_window, attention_training, decode_window, decode_full, column_sums, slab_decode)
}

TORCH = """
import statistics, sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
T, N, H, W = 8192, 4, 64, 1024
q, k, v = (torch.randn(1, N, T, H) for _ in range(3))
age = torch.arange(T)[:, None] - torch.arange(T)[None]
mask = (age >= 0) & (age < W)
times = []
for _ in range(4):
    start = time.perf_counter()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    times.append(1e3 * (time.perf_counter() - start))
print(*times[1:])
"""


def torch_rows(python: str, found: list[dict]) -> list[dict]:
    """torch's attention with the same window as a mask, in its own interpreter and as many threads."""
    threads = str(len(os.sched_getaffinity(0)))
    done = subprocess.run([python, "-c", TORCH, threads], capture_output=True, text=True, check=True)
    times = [float(x) for x in done.stdout.split()]
    base = next(r for r in found if r["run"] == found[0]["against"])["median_ms"]
    return [row("attention_window", "torch_sdpa", times, base, found[0]["against"], found[0]["note"])]


if __name__ == "__main__":
    main()
