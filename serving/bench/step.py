"""The cost of a step: the host's decisions, and the whole engine beside its bare programs."""

import dataclasses
import random
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from pallas_kernels import measure
from serving.bench import MODEL, Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling

if TYPE_CHECKING:
    from serving.engine.scheduler import Scheduler


def host(size: Size) -> list[Row]:
    """Host time per step while 64 rows decode one step per call of a very small model."""
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
    scheduler_s: list[float] = []
    host_s: list[float] = []
    timer = _SchedulerTimer(engine.scheduler)
    for _ in range(120):
        before = engine.stats().host_s
        timer.seconds = 0.0
        engine.step()
        scheduler_s.append(timer.seconds)
        host_s.append(engine.stats().host_s - before)
    what = "scheduler, tree and tables a step at 64 rows"
    return [
        row("host", f"{what}: median", 1e3 * median(scheduler_s), "ms CPU", goal="< 0.3"),
        row("host", f"{what}: least", 1e3 * min(scheduler_s), "ms CPU"),
        row(
            "host", "whole host part a step, wall: median", 1e3 * median(host_s), "ms", "dispatch, deltas too"
        ),
        row("host", "whole host part a step, wall: least", 1e3 * min(host_s), "ms"),
    ]


class _SchedulerTimer:
    """Sums the CPU time of this thread in a scheduler's plan and commit; other processes do not count."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self.seconds = 0.0
        for name in ("plan", "commit"):
            setattr(scheduler, name, self._wrap(getattr(scheduler, name)))

    def _wrap[**P, T](self, run: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            start = time.thread_time()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return timed


def decode(size: Size) -> list[Row]:
    """32 rows of 8 steps per call: the engine's step and the bare program on the same state, interleaved."""
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

    def bare_s() -> float:
        tables = {k: t.copy() for k, t in zip(engine.kinds, engine.memory.tables)}
        batch = DecodeBatch(tables, np.arange(rows, dtype=np.int32), np.full(rows, 8, np.int32))
        start = time.perf_counter()
        engine.state, drawn = engine.programs.decode(engine.state, batch, 8, PLAIN)
        np.asarray(drawn.token)
        seconds = time.perf_counter() - start
        # The call advanced the rows; restore the positions that the scheduler expects.
        state = engine.state.rows
        restored = dataclasses.replace(state, position_B=state.position_B - 8)
        engine.state = dataclasses.replace(engine.state, rows=restored)
        return seconds

    sides = {"engine": measure.timed(engine.step), "bare": bare_s}
    whole, bare = measure.interleave(sides, 30, warmup=0).values()  # both are compiled
    tokens = rows * 8
    return [
        row("decode", "engine", tokens / median(whole), "tok/s", f"{rows} rows, 8 steps a call"),
        row("decode", "bare program", tokens / median(bare), "tok/s", "same shapes, same state"),
        row("decode", "engine over bare, medians", median(bare) / median(whole), "", goal=">= 0.85"),
        row("decode", "engine over bare, minima", min(bare) / min(whole), "", goal=">= 0.85"),
    ]
