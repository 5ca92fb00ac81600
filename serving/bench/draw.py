"""The cost of sampling: top-k and top-p by bisection beside a sort, at large vocabularies."""

from functools import partial
from statistics import median

import jax
import jax.numpy as jnp

from mixattn.sample import SamplingParams, filter_logits
from pallas_kernels import measure
from serving.bench import Row, Size, row

ROWS = 32
VOCABULARIES = 32_768, 131_072


def draw(size: Size) -> list[Row]:
    """Milliseconds to filter 32 rows of logits, and the number of tokens on which the two ways differ."""
    rows = []
    for vocab in VOCABULARIES:
        logits_BV = 2 * jax.random.normal(jax.random.key(vocab), (ROWS, vocab))
        sampling_B = SamplingParams.greedy(ROWS)._replace(temperature_B=jnp.ones(ROWS))
        both = sampling_B._replace(top_k_B=jnp.full(ROWS, 50), top_p_B=jnp.full(ROWS, 0.9))
        for name, params_B in (
            ("top-p 0.9", sampling_B._replace(top_p_B=both.top_p_B)),
            ("top-k 50, top-p 0.9", both),
        ):
            ways = {"halving": jax.jit(filter_logits), "sorting": jax.jit(by_sorting)}
            kept = [jnp.isfinite(way(logits_BV, params_B)) for way in ways.values()]
            differ = int(jnp.sum(kept[0] != kept[1]))
            sides = {way: measure.timed(partial(run, logits_BV, params_B)) for way, run in ways.items()}
            taken = measure.interleave(sides, max(5, size.repeats), warmup=0)  # compiled above
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
    """Top-k and top-p as `filter_logits` applies them, written with a sort."""
    V = scaled_BV.shape[1]
    sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    top_k_B = jnp.where(sampling_B.top_k_B > 0, jnp.minimum(sampling_B.top_k_B, V), V)
    kth_B1 = jnp.take_along_axis(sorted_BV, top_k_B[:, None] - 1, axis=-1)
    among_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(among_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    inside_BV = (before_BV < sampling_B.top_p_B[:, None]) & (among_BV > -jnp.inf)
    min_B = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1)
    return jnp.where(scaled_BV >= min_B[:, None], scaled_BV, -jnp.inf)
