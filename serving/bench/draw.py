"""What it costs to choose a token: top-k and top-p without sorting beside the sort, at large vocabularies."""

import time
from statistics import median

import jax
import jax.numpy as jnp

from mixattn.sample import SamplingParams, filter_logits
from serving.bench import Row, Size, row

ROWS = 32
VOCABULARIES = 32_768, 131_072


def draw(size: Size) -> list[Row]:
    """Milliseconds to filter 32 rows of logits; both ways in turns, and they keep the same tokens."""
    rows = []
    for vocab in VOCABULARIES:
        logits_BV = 2 * jax.random.normal(jax.random.key(vocab), (ROWS, vocab))
        sampling_B = SamplingParams.greedy(ROWS)._replace(temperature_B=jnp.ones(ROWS))
        both = sampling_B._replace(top_k_B=jnp.full(ROWS, 50), top_p_B=jnp.full(ROWS, 0.9))
        for name, knobs in (
            ("top-p 0.9", sampling_B._replace(top_p_B=both.top_p_B)),
            ("top-k 50, top-p 0.9", both),
        ):
            ways = {"halving": jax.jit(filter_logits), "sorting": jax.jit(by_sorting)}
            kept = [jnp.isfinite(way(logits_BV, knobs)) for way in ways.values()]
            differ = int(jnp.sum(kept[0] != kept[1]))
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(max(5, size.repeats)):
                for way, run in ways.items():
                    began = time.perf_counter()
                    jax.block_until_ready(run(logits_BV, knobs))
                    taken[way].append(time.perf_counter() - began)
            what = f"{name} of {vocab} tokens"
            for way, seconds in taken.items():
                rows.append(
                    row("draw", f"{what}, {way}: median", 1e3 * median(seconds), "ms", f"{ROWS} rows")
                )
            gain = median(taken["sorting"]) / median(taken["halving"])
            rows.append(
                row(
                    "draw",
                    f"{what}: sorting over halving",
                    gain,
                    "",
                    f"{differ} tokens kept otherwise",
                    "> 1",
                )
            )
    return rows


def by_sorting(scaled_BV: jax.Array, sampling_B: SamplingParams) -> jax.Array:
    """What `filter_logits` does to top-k and top-p, written with a sort."""
    V = scaled_BV.shape[1]
    sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    top_k_B = jnp.where(sampling_B.top_k_B > 0, jnp.minimum(sampling_B.top_k_B, V), V)
    kth_B1 = jnp.take_along_axis(sorted_BV, top_k_B[:, None] - 1, axis=-1)
    among_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(among_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    inside_BV = (before_BV < sampling_B.top_p_B[:, None]) & (among_BV > -jnp.inf)
    least_B = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1)
    return jnp.where(scaled_BV >= least_B[:, None], scaled_BV, -jnp.inf)
