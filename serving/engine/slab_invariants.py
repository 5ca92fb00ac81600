"""Debug mode of slabs: after every step each slab obeys its budget, and what nobody uses is NaN.

    1. a head holds at most its budget, no position twice, none that is not computed yet
    2. the newest `recent` positions and the first `sinks` are there
    3. what was evicted never comes back

A slab is written whole when a prompt is moved to it, so the poison of a slot that is free reaches nobody.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mixattn.cache.kept_pages import PagedSlab
from serving.engine.device_state import DeviceState
from serving.engine.plan import RequestState
from serving.request import RequestId


class SlabChecker:
    """Checks the slabs of an engine after each of its steps."""

    def __init__(self) -> None:
        self._slots: dict[RequestId, int] = {}  # of rows that were settled
        self._held: dict[tuple[RequestId, int], tuple[int, list[set[int]]]] = {}

    def after_step(self, state: DeviceState, running: Mapping[RequestId, RequestState]) -> DeviceState:
        """The state with NaN in slabs that were given up. Raises AssertionError if a slab is wrong."""
        settled = {id: req for id, req in running.items() if req.kv is not None and req.kv.settled}
        assert state.kept is not None
        at_Z = np.asarray(state.rows.position_B)
        for owner, slab in state.kept.slabs.items():
            position_ZKR = np.asarray(slab.position_ZKR)
            for id, req in settled.items():
                place = sorted(state.kept.slabs).index(owner)
                self._check(id, req, owner, place, position_ZKR[req.slot], int(at_Z[req.slot]))
        self._held = {key: seen for key, seen in self._held.items() if key[0] in settled}
        now = {id: req.slot for id, req in settled.items()}
        freed = sorted(set(self._slots.values()) - set(now.values()))
        self._slots = now
        return poison_slabs(state, jnp.array(_padded(freed, len(at_Z)))) if freed else state

    def _check(
        self, id: RequestId, req: RequestState, owner: int, place: int, position_KR: np.ndarray, at: int
    ) -> None:
        """`at`: tokens that the device has computed."""
        assert req.slab is not None
        heavy, recent, sinks = req.slab.limits[place]
        computed, before = self._held.get((id, owner), (req.info.prompt_tok, []))
        heads = [row[row >= 0].tolist() for row in position_KR]
        for head, positions in enumerate(heads):
            here = set(positions)
            assert len(here) == len(positions), f"{id}: head {head} of owner {owner} holds a position twice"
            assert len(here) <= heavy + recent + sinks, f"{id}: head {head} of owner {owner} is over budget"
            assert all(p < at for p in here), f"{id}: a key of the future"
            if req.computed_tok > req.info.prompt_tok:
                newest = set(range(max(0, at - recent), at))
                assert newest <= here, f"{id}: head {head} of owner {owner} lost a recent key"
            assert set(range(min(sinks, at))) <= here, f"{id}: head {head} of owner {owner} lost a sink"
            if before:
                new = set(range(computed, at))
                assert here <= before[head] | new, f"{id}: an evicted key came back to owner {owner}"
        self._held[id, owner] = at, [set(positions) for positions in heads]


def _padded(slots: Sequence[int], n: int) -> list[int]:
    return [*slots, *[n] * (n - len(slots))]


@functools.partial(jax.jit, donate_argnames="state")
def poison_slabs(state: DeviceState, slot_X: jax.Array) -> DeviceState:
    """NaN in the slabs of these slots; a slot that does not exist is skipped."""
    kept = state.kept
    assert kept is not None
    slabs = {owner: _poisoned(slab, slot_X) for owner, slab in kept.slabs.items()}
    return dataclasses.replace(state, kept=dataclasses.replace(kept, slabs=slabs))


def _poisoned(slab: PagedSlab, slot_X: jax.Array) -> PagedSlab:
    pages = slab.table(slot_X).reshape(-1)
    pages = jnp.where(pages < slab.pool.pages, pages, slab.pool.pages)

    def filled(x: jax.Array) -> jax.Array:
        return x.at[pages].set(-1 if x.dtype == jnp.int8 else jnp.nan, mode="drop")

    return dataclasses.replace(
        slab,
        pool=jax.tree.map(filled, slab.pool),
        score_ZKR=slab.score_ZKR.at[slot_X].set(jnp.nan, mode="drop"),
        position_ZKR=slab.position_ZKR.at[slot_X].set(2**29, mode="drop"),
    )
