"""What a step costs: the host's decisions, and the whole engine beside its bare programs."""

import dataclasses
import random
import time
from collections.abc import Callable
from statistics import median

from serving.bench import MODEL, Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling


def host(size: Size) -> list[Row]:
    """64 rows decode one step a call. Pure: the scheduler over real pages, a device that answers at once."""
    from serving.engine.engine import Engine

    config = EngineConfig(
        max_slots=64,
        max_request_tok=256,
        prefill_rows=(4,),
        limits=Limits(chunk_tok=64, step_tok=256, decode_steps=(1,)),
    )
    engine = Engine(network(dataclasses.replace(MODEL, d_model=32, d_ff=32)), config)
    rng = random.Random(0)
    for _ in range(64):
        engine.submit(Request(client="a", prompt_ids=prompt(rng, 64), sampling=Sampling(max_tokens=190)))
    while engine.scheduler.waiting or any(e.prefilling for e in engine.scheduler.running.values()):
        engine.step()
    decide: list[float] = []
    rest: list[float] = []
    scheduler = engine.scheduler
    timed = _Timed(scheduler)
    for _ in range(120):
        before = engine.stats().host_s
        timed.seconds = 0.0
        engine.step()
        decide.append(timed.seconds)
        rest.append(engine.stats().host_s - before)
    what = "scheduler, tree and tables a step at 64 rows"
    return [
        row("host", f"{what}: median", 1e3 * median(decide), "ms CPU", goal="< 0.3"),
        row("host", f"{what}: least", 1e3 * min(decide), "ms CPU"),
        row("host", "whole host part a step, wall: median", 1e3 * median(rest), "ms", "dispatch, deltas too"),
        row("host", "whole host part a step, wall: least", 1e3 * min(rest), "ms"),
    ]


class _Timed:
    """Sums the CPU time of this thread in a scheduler's plan and commit: what others run does not count."""

    def __init__(self, scheduler):
        self.seconds = 0.0
        for name in ("plan", "commit"):
            setattr(scheduler, name, self._wrap(getattr(scheduler, name)))

    def _wrap(self, run: Callable) -> Callable:
        def timed(*args):
            began = time.thread_time()
            try:
                return run(*args)
            finally:
                self.seconds += time.thread_time() - began

        return timed


def decode(size: Size) -> list[Row]:
    """32 rows of 8 steps a call: the engine's steps and the bare program on the same state, in turn."""
    import numpy as np

    from serving.engine.device_state import PLAIN, DecodeBatch
    from serving.engine.engine import Engine

    rows = 32
    limits = Limits(chunk_tok=64, step_tok=256, decode_steps=(8, 1))
    engine = Engine(
        network(), EngineConfig(max_slots=rows, max_request_tok=768, prefill_rows=(4,), limits=limits)
    )
    rng = random.Random(0)
    for _ in range(rows):
        engine.submit(Request(client="a", prompt_ids=prompt(rng, 64), sampling=Sampling(max_tokens=680)))
    while engine.stats().decode_rows < 3 * rows * 8:
        engine.step()
    whole, bare = [], []
    for _ in range(30):
        began = time.perf_counter()
        engine.step()
        whole.append(time.perf_counter() - began)
        tables = {k: t.copy() for k, t in zip(engine.kinds, engine.memory.tables)}
        batch = DecodeBatch(tables, np.arange(rows, dtype=np.int32), np.full(rows, 8, np.int32))
        began = time.perf_counter()
        engine.state, drawn = engine.programs.decode(engine.state, batch, 8, PLAIN)
        np.asarray(drawn.token)
        bare.append(time.perf_counter() - began)
        # The bare call moved the rows on; put them back where the scheduler thinks they are.
        state = engine.state.rows
        back = dataclasses.replace(state, position_B=state.position_B - 8)
        engine.state = dataclasses.replace(engine.state, rows=back)
    tokens = rows * 8
    return [
        row("decode", "engine", tokens / median(whole), "tok/s", f"{rows} rows, 8 steps a call"),
        row("decode", "bare program", tokens / median(bare), "tok/s", "same shapes, same state"),
        row("decode", "engine over bare, medians", median(bare) / median(whole), "", goal=">= 0.85"),
        row("decode", "engine over bare, minima", min(bare) / min(whole), "", goal=">= 0.85"),
    ]
