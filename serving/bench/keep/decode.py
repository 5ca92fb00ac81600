"""A decode step over full pages, slabs, and a page each; and below the budget, where nothing is evicted."""

import dataclasses
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from pallas_kernels import measure
from serving.bench import Row, row
from serving.bench.keep.engines import NEW, PAGE, ROWS, STEPS, engine_of, made_up, slab_of
from serving.bench.keep.layer import scores, settling

if TYPE_CHECKING:
    from serving.engine.engine import Engine


def decoding(context: int, goal: str, rounds: int) -> list[Row]:
    """A step of 32 rows whose context is `context`, over full pages, slabs, and a page each."""
    slab = slab_of(context)
    # One prompt is in prefill at a time: the pool of an engine that evicts holds little more.
    full = engine_of(context)
    kept = engine_of(context, slab=slab, num_pages=2 + (context + NEW) // PAGE)
    none = engine_of(PAGE - NEW)
    sides = {
        "full": decode_call(full, context),
        "slabs": decode_call(kept, context),
        "no attention": decode_call(none, PAGE // 2),
    }
    taken = measure.interleave(sides, rounds)
    ms = {name: 1e3 * median(s) / STEPS for name, s in taken.items()}
    least = {name: 1e3 * min(s) / STEPS for name, s in taken.items()}
    what = f"{ROWS} rows, context {context}"
    rows = [row("keep", f"{what}, {n}: decode step", ms[n], "ms", f"minimum {least[n]:.2f}") for n in ms]
    gain, ceiling = ms["full"] / ms["slabs"], ms["full"] / ms["no attention"]
    rows += [
        row("keep", f"{what}: full over slabs of {slab}", gain, "", goal=goal),
        row("keep", f"{what}: minima", least["full"] / least["slabs"], ""),
        row("keep", f"{what}: ceiling, attention for nothing", ceiling, "", "full over a context of a page"),
        row("keep", f"{what}: share of the ceiling", gain / ceiling, ""),
    ]
    rows += scores(kept, context, rounds)
    return rows + settling(kept, context, ms["slabs"], rounds)


def decode_call(
    engine: "Engine", context: int, rows: int = ROWS, *, exact: bool = False
) -> Callable[[], float]:
    """A call of `STEPS` steps of every row on a made-up state, as seconds.

    Args:
      exact: by the program of rows in slabs that never evict.
    """
    import jax
    import numpy as np

    from mixattn.cache import FULL
    from serving.engine.device_state import PLAIN
    from serving.engine.slab_programs import SlabPrograms

    programs, slots = engine.programs, engine.config.max_slots
    engine.state = made_up(engine.state, context, engine.config.keep.slab_tok)
    left, place = np.full(rows, STEPS, np.int32), np.arange(rows, dtype=np.int32)
    run: Callable[..., Any]
    if isinstance(programs, SlabPrograms):
        run, batch = (
            functools.partial(programs.decode_slabs, exact=exact),
            programs.blank_slab_decode(rows),
        )
    else:
        run, batch = programs.decode, programs.blank_decode(rows)
        table = batch.tables[FULL.name]
        pages = -(-(context + STEPS) // PAGE)
        table[:, :pages] = 1 + np.arange(rows * pages).reshape(rows, pages)
    batch = batch._replace(slot_R=place, left_R=left)
    before = jax.tree.map(lambda x: x.copy(), engine.state.rows)
    slabs = (
        None if engine.state.kept is None else jax.tree.map(lambda x: x.copy(), _beside(engine.state.kept))
    )

    def seconds() -> float:
        state = dataclasses.replace(engine.state, rows=jax.tree.map(lambda x: x.copy(), before))
        if slabs is not None and state.kept is not None:
            state = dataclasses.replace(state, kept=_with_beside(state.kept, slabs))
        jax.block_until_ready(state)
        start = time.perf_counter()
        engine.state, drawn = run(state, batch, STEPS, PLAIN)
        np.asarray(drawn.token)
        return time.perf_counter() - start

    assert slots >= rows
    return seconds


def _beside(kept: Any) -> dict[int, Any]:
    """Scores and positions, which decoding changes; keys may be any."""
    return {owner: (slab.score_ZKR, slab.position_ZKR) for owner, slab in kept.slabs.items()}


def _with_beside(kept: Any, beside: dict[int, Any]) -> Any:
    slabs = {
        owner: dataclasses.replace(
            slab, score_ZKR=beside[owner][0].copy(), position_ZKR=beside[owner][1].copy()
        )
        for owner, slab in kept.slabs.items()
    }
    return dataclasses.replace(kept, slabs=slabs)


def short(rounds: int) -> list[Row]:
    """One row, and 32 rows, below the budget: what an engine that evicts costs where nothing is evicted.

    All rows are exact, so the engine takes the program without scores. A batch with a row that evicts takes
    that of slabs for all of its rows, which is the third side.
    """
    rows: list[Row] = []
    for count in (1, ROWS):
        context = 256
        full, exact, kept = (engine_of(512, rows=count, slab=slab) for slab in (0, 512 + NEW, 512 + NEW))
        sides = {
            "full": decode_call(full, context, count),
            "slabs": decode_call(exact, context, count, exact=True),
            "slabs beside a row that evicts": decode_call(kept, context, count),
        }
        taken = measure.interleave(sides, 3 * rounds)
        for name, goal in (("slabs", "<= 1.03"), ("slabs beside a row that evicts", "")):
            ratio = median(taken[name]) / median(taken["full"])
            detail = f"minima {min(taken[name]) / min(taken['full']):.3f}"
            what = f"batch {count}, context {context} below the budget: {name} over full"
            rows.append(row("keep", what, ratio, "", detail, goal))
    return rows
