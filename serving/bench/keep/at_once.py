"""Requests that run at once in one budget, full cache and slabs, served to the end."""

import dataclasses
import random
import time
from typing import TYPE_CHECKING

from mixattn.spec import ModelConfig, kv_bytes
from serving.bench import Row, network, prompt, row
from serving.bench.keep.engines import NEW, PAGE, STEPS, engine_of, one, slab_of
from serving.config import KeepSettings, Limits

if TYPE_CHECKING:
    from serving.engine.engine import Engine

SMALL = ModelConfig(
    n_layers=4, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, vocab_size=512, max_positions=4096
)
HOLDS = 24  # requests that the budget holds in full
LONG = 2048


def at_once() -> list[Row]:
    """Requests of 2,048 + 256 tokens in one budget, served to the end: full cache and slabs of a fifth."""
    tokens = LONG + NEW
    budget = HOLDS * kv_bytes(SMALL, tokens, SMALL.dtype)
    slab = slab_of(LONG)
    key_bytes = SMALL.n_layers * SMALL.n_kv_heads * (2 * SMALL.head_dim * 4 + 8)
    page_bytes = PAGE * kv_bytes(SMALL, 1, SMALL.dtype)
    places = -(-(slab + 1) // PAGE) * PAGE
    prompt_pages = 2 + LONG // PAGE
    votes = 2 * 4 * SMALL.n_layers * (tokens + PAGE)
    left = budget - prompt_pages * page_bytes - votes
    slots = left // (places * key_bytes + 12)
    formula = (budget - kv_bytes(SMALL, LONG, SMALL.dtype)) / (slab * key_bytes)
    limits = Limits(chunk_tok=256, step_tok=256, decode_steps=(STEPS, 1), mixed=False)
    pools = HOLDS * (tokens // PAGE) + 1
    full = engine_of(LONG, rows=HOLDS + 4, model=SMALL, num_pages=pools, reuse=False, limits=limits)
    from serving.engine.engine import Engine

    config = dataclasses.replace(
        full.config,
        max_slots=slots,
        num_pages=prompt_pages,
        keep=KeepSettings(slab_tok=slab, snapshots=0, prefilling=1, full_decode=False),
    )
    kept = Engine(network(SMALL), config)
    found = {name: _served(engine, slots) for name, engine in (("full", full), ("slabs", kept))}
    used = kept.stats().slab_bytes + kept.stats().votes_bytes + prompt_pages * page_bytes
    (full_at_once, full_rate), (at_once, rate) = found["full"], found["slabs"]
    return [
        row(
            "keep", "requests at once, full cache", full_at_once, "", f"{LONG} + {NEW} tokens, {budget} bytes"
        ),
        row("keep", f"requests at once, slabs of {slab}", at_once, "", f"{used / budget:.3f} of the budget"),
        row("keep", "requests at once, slabs over full", at_once / full_at_once, "", goal=">= 4.5"),
        row("keep", "requests at once over the formula", at_once / formula, "", f"{formula:.1f}", ">= 0.98"),
        row("keep", "bytes over the budget", used / budget, "", goal="<= 1"),
        row("keep", "output, full cache", full_rate, "tok/s"),
        row("keep", "output, slabs", rate, "tok/s"),
        row("keep", "output, slabs over full", rate / full_rate, ""),
    ]


def _served(engine: "Engine", requests: int) -> tuple[int, float]:
    """The most requests that ran at once, and output tokens/s."""
    rng = random.Random(0)
    for _ in range(requests):
        engine.submit(one(rng, prompt(rng, LONG, SMALL.vocab_size), NEW))
    most, start = 0, time.perf_counter()
    while engine.live:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    return most, engine.stats().output_tok / (time.perf_counter() - start)
