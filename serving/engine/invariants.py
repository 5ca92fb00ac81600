"""The engine's debug mode: invariants that are checked after every step.

    1. every page has one holder and every count agrees               (`KVCacheManager.check`)
    2. a slot belongs to one running request, a running request has one slot, and no request waits and runs
    3. a page of a live table row is its request's own, or in a part of the tree that it locks    (same)
    4. no request has computed more than it has; one that decodes all but its newest token
    5. an ended request holds nothing: no stream, slot, table row, or place in a queue or at the policy
    6. every request is live or has produced exactly one final output

Freed pages are filled with NaN, so that a stale read shows. A page is zeroed by the write that opens it
(`pallas_kernels.paged.write`), so the poison reaches no new holder.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mixattn.cache import Kind, kind_of
from mixattn.spec import ModelConfig
from serving.config import EngineConfig
from serving.engine.device_state import DeviceState
from serving.engine.output import OutputStream
from serving.engine.policy_fallback import FallbackPolicy
from serving.engine.scheduler import Scheduler
from serving.engine.slab_invariants import SlabChecker
from serving.engine.stats import EngineStats
from serving.kvcache.manager import KVCacheManager
from serving.request import RequestId

BATCH = 32  # pages that one call poisons


class Inspected(Protocol):
    """What the checks need of an `Engine`."""

    config: EngineConfig
    model_config: ModelConfig
    memory: KVCacheManager
    scheduler: Scheduler
    state: DeviceState

    @property
    def kinds(self) -> Sequence[Kind]: ...
    @property
    def streams(self) -> Mapping[RequestId, OutputStream]: ...
    @property
    def fallback(self) -> FallbackPolicy: ...
    @property
    def live(self) -> bool: ...
    def stats(self) -> EngineStats: ...


class InvariantChecker:
    """Checks an engine after each of its steps."""

    def __init__(self, engine: Inspected):
        self._engine = engine
        layers = engine.model_config.layers
        self._group_of = {
            owner: engine.kinds.index(kind_of(layers[owner], engine.state.cache.kinds).name)
            for owner in engine.model_config.owners
        }
        self._free = [set(pool.free_pages()) for pool in engine.memory.pools]
        self._slabs = SlabChecker()

    def after_step(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        check(self._engine)
        free = [set(pool.free_pages()) for pool in self._engine.memory.pools]
        freed = [sorted(now - before) for now, before in zip(free, self._free)]
        self._free = free
        self._poison(freed)
        if self._engine.state.kept is not None:
            running = self._engine.scheduler.running
            self._engine.state = self._slabs.after_step(self._engine.state, running)

    def _poison(self, freed: list[list[int]]) -> None:
        for at in range(0, max(map(len, freed)), BATCH):
            pages = np.zeros((len(freed), BATCH), np.int32)
            for row, some in zip(pages, freed):
                row[: len(some[at : at + BATCH])] = some[at : at + BATCH]
            groups = tuple(sorted(self._group_of.items()))
            self._engine.state = poison(self._engine.state, pages, groups)


@functools.partial(jax.jit, static_argnames="groups", donate_argnames="state")
def poison(state: DeviceState, page_GX: jax.Array, groups: tuple[tuple[int, int], ...]) -> DeviceState:
    """NaN in pages `page_GX` of each group (0 = none); `groups` says which group each owner is in."""
    pools = dict(state.cache.pools)
    for owner, group in groups:
        page_X = jnp.where(page_GX[group] > 0, page_GX[group], pools[owner].pages)
        pools[owner] = jax.tree.map(
            # Codes whose scale's bytes are all -1 read as NaN too.
            lambda x, at=page_X: x.at[at].set(-1 if x.dtype == jnp.int8 else jnp.nan, mode="drop"),
            pools[owner],
        )
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, pools=pools))


def check(engine: Inspected) -> None:
    """Asserts the invariants above."""
    engine.memory.check()
    _check_slots(engine)
    _check_progress(engine.scheduler)
    _check_ends(engine)


def _check_slots(engine: Inspected) -> None:
    running, waiting = engine.scheduler.running, engine.scheduler.waiting
    assert not running.keys() & waiting.keys(), "a request waits and runs"
    assert all(req.kv is None for req in waiting.values()), "a waiting request holds a slot"
    slots = {req.slot for req in running.values()}
    assert len(slots) == len(running) == engine.config.max_slots - engine.memory.slots_free
    for table in engine.memory.tables:
        assert not np.delete(table, sorted(slots), axis=0).any(), "a free slot shows pages"


def _check_progress(scheduler: Scheduler) -> None:
    assert all(req.computed_tok == 0 for req in scheduler.waiting.values())
    assert scheduler.prefilling.keys() <= scheduler.running.keys()
    for id, req in scheduler.running.items():
        if id in scheduler.prefilling:
            assert req.computed_tok < req.prefill_tok, f"{id} has computed its prompt"
        else:
            replays = req.slab is not None and req.info.prompt_tok <= req.computed_tok < req.total_tok
            assert req.computed_tok == req.total_tok - 1 or replays, f"{id} decodes without its past"


def _check_ends(engine: Inspected) -> None:
    live = engine.scheduler.running.keys() | engine.scheduler.waiting.keys()
    assert engine.streams.keys() == live, "a stream without a request, or a request without a stream"
    stats = engine.stats()
    assert stats.arrived == len(live) + sum(stats.finished.values()), (
        "a final output is missing or was produced twice"
    )
    queues = engine.fallback
    assert queues.waiting.keys() == engine.scheduler.waiting.keys(), (
        "the policy knows other requests as waiting"
    )
    assert queues.running.keys() == engine.scheduler.running.keys(), (
        "the policy knows other requests as running"
    )


def check_idle(engine: Inspected) -> None:
    """Asserts that requests have left nothing but cached pages."""
    check(engine)
    assert not engine.live
    assert engine.memory.slots_free == engine.config.max_slots
    for g, pool in enumerate(engine.memory.pools):
        assert len(pool) + engine.memory.tree.pages[g].held == pool.num_pages - 1
        assert engine.memory.tree.pages[g].evictable == engine.memory.tree.pages[g].held
