"""A soak test: many tiny requests, cancelled at random, in an engine with too little memory for them."""

import dataclasses
import random
import time
from collections import Counter
from typing import Any

import jax

from mixattn.spec import ModelConfig
from serving.bench import Row, Size, network, row
from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.engine.invariants import check_idle
from serving.request import Request, Sampling

TINY = ModelConfig(
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    vocab_size=64,
    kv_wiring="0_1s",
    window=12,
)
CONFIG = EngineConfig(
    max_slots=4,
    page_size=4,
    num_pages=24,
    window_pages=28,
    max_request_tok=64,
    prefill_rows=(4,),
    policy="vtc",
    limits=Limits(chunk_tok=16, step_tok=32, admission="optimistic"),
)
EVICTING = dataclasses.replace(
    CONFIG,
    keep=KeepSettings(slab_tok=8, recent_tok=3, scorers=("streaming",), snapshots=3, prefilling=2),
)
PREFIX = [7] * 8  # shared by three of ten prompts
MAX_CONCURRENT = 12


def soak(engine: Engine, requests: int, seed: int) -> dict[str, Any]:
    """Serves `requests` tiny requests.

    Returns:
      `ended`: how many finished; `twice`: ids that finished more than once; `reasons`: finish reasons with
      counts; `compiled`: compilation events, of which there should be none.
    """
    rng = random.Random(seed)
    ended: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **more: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        sent = 0
        while sent < requests or engine.live:
            while sent < requests and len(engine.streams) < MAX_CONCURRENT:
                engine.submit(_tiny(rng, sent, engine.programs.vocab))
                sent += 1
            if rng.random() < 0.15 and engine.streams:
                engine.cancel(rng.choice(list(engine.streams)))
            outputs = [delta.output for delta in engine.step() if delta.output is not None]
            ended.update(output.id for output in outputs)
            reasons.update(output.finish_reason for output in outputs)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    twice = [id for id, times in ended.items() if times > 1]
    return {"ended": len(ended), "twice": twice, "reasons": dict(reasons), "compiled": compiled}


def _tiny(rng: random.Random, number: int, vocab: int) -> Request:
    own = [rng.randrange(vocab) for _ in range(rng.choice((1, 4, 9, 20)))]
    ids = PREFIX + own if rng.random() < 0.3 else own
    sampling = Sampling(max_tokens=rng.randint(1, 6))
    return Request(client=rng.choice("abc"), id=f"s{number}", prompt_ids=ids, sampling=sampling)


def run(size: Size, requests: int = 10_000) -> list[Row]:
    """Soaks an engine with four slots and small pools, then checks that nothing leaked."""
    return _rows("soak", Engine(network(TINY), CONFIG), requests)


def evicting(size: Size, requests: int = 10_000) -> list[Row]:
    """The same with slabs of 8 keys, two scorers, and rows of scores for two prompts and three snapshots."""
    engine = Engine(network(TINY), EVICTING)
    rows = _rows("soak_keep", engine, requests)
    stats = engine.stats()
    return [
        *rows,
        row("soak_keep", "evictions", stats.evictions, "keys", "of all heads and owners"),
        row("soak_keep", "prompt tokens found at snapshots", stats.hit_tok, "tok"),
        row("soak_keep", "hits lost for want of a snapshot", stats.hits_lost, ""),
    ]


def _rows(part: str, engine: Engine, requests: int) -> list[Row]:
    engine.run([_tiny(random.Random(0), number, TINY.vocab_size) for number in range(3)])
    start = time.perf_counter()
    found = soak(engine, requests, seed=1)
    seconds = time.perf_counter() - start
    check_idle(engine)  # raises if a page, a slot, a lock or a stream is not freed
    stats = engine.stats()
    return [
        row(part, "requests that ended", found["ended"], "", str(found["reasons"]), goal=f"= {requests}"),
        row(part, "of these, more than once", len(found["twice"]), "", goal="= 0"),
        row(part, "compilations behind the start", len(found["compiled"]), "", goal="= 0"),
        row(part, "pages, slots, locks or streams left when idle", 0, "", "checked; it would have raised"),
        row(part, "retractions", stats.preemptions, "", "pools of 23 and 27 pages of 4 tokens, 4 slots"),
        row(part, "steps", stats.steps, ""),
        row(part, "seconds", seconds, "s"),
    ]
