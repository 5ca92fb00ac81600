"""The device half of eviction: prompts whose queries vote, the move to a slab, and decoding on slabs.

    prefill_votes(params, state, batch)    -> state, StepOutput     as `steps.prefill`, and votes are added up
    settle(state, batch)                   -> state                 one prompt's survivors go to its slab
    decode_slabs(params, state, batch, n)  -> state, StepOutput     as `steps.decode`, evicting in each step
    decode_exact(params, state, batch, n)  -> state, StepOutput     the same for rows that never evict

The chunk that ends a prompt attends to all of it, so no budget changes the first token.

Axes: R requests of a call, C tokens of a chunk, Z slots, O full owners, K key/value heads, S positions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.cache import FULL, Paged, kind_of
from mixattn.cache.kept import full_owners
from mixattn.cache.kept_pages import PagedSlab, SlabRules
from mixattn.cache.settle import settled
from mixattn.cache.slab_rows import ExactRows, SlabRows
from mixattn.cache.voting_pages import VotingPages
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from pallas_kernels import paged
from serving.engine.device_state import (
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SettleBatch,
    SlabState,
    SlotRows,
    SplitModel,
    StepOutput,
    VotePlaces,
)
from serving.engine.steps import (
    empty_output,
    finish_decode,
    finish_prefill,
    load_rows,
    store_rows,
    with_penalties_of,
    with_pools,
)

type Slabs = dict[int, PagedSlab]
# Steps done; window pools, slabs and rows; tokens each row may still produce; what was produced so far.
type SlabCarry = tuple[jax.Array, tuple[dict[int, paged.Pool], Slabs, SlotRows], jax.Array, StepOutput]


@functools.partial(jax.jit, static_argnames=("network", "rules", "features"), donate_argnames="state")
def prefill_votes(
    network: SplitModel,
    rules: SlabRules,
    params: Sequence[jax.Array],
    state: DeviceState,
    batch: PrefillBatch,
    *,
    features: SamplingFeatures,
) -> tuple[DeviceState, StepOutput]:
    """Computes chunks, adds their votes, and installs the rows whose prompt ends."""
    model, places = network.model(params), batch.votes
    assert places is not None
    assert state.kept is not None
    pages = state.cache.with_rows(batch.tables, batch.start_R, batch.count_R)
    cache = VotingPages(pages, places.first_R, rules)
    step = model.forward(batch.tokens_RC, cache=cache, last_only=not features.prompt)
    assert isinstance(step.cache, VotingPages)
    rows, output = finish_prefill(model, step.hidden_BTD, state.rows, batch, features)
    kept = dataclasses.replace(state.kept, votes=_added(state.kept.votes, step.cache.votes, places))
    return with_pools(dataclasses.replace(state, kept=kept), step.cache.pages.pools, rows), output


def _added(
    votes: dict[int, jax.Array], more: dict[int, jax.Array], places: VotePlaces
) -> dict[int, jax.Array]:
    return {owner: _added_rows(rows, more[owner], places) for owner, rows in votes.items()}


def _added_rows(votes_XKS: jax.Array, more_RKS: jax.Array, places: VotePlaces) -> jax.Array:
    """In place, one row after the other. A scatter, or a sum fused with its write, would copy all rows.

    What goes nowhere is written as zeros to row 0, which holds zeros.
    """
    sums_RKS = votes_XKS[places.from_R] + more_RKS
    sums_RKS, votes_XKS = jax.lax.optimization_barrier((sums_RKS, votes_XKS))
    for r, sums_KS in enumerate(sums_RKS):
        for to in (places.to_R[r], places.mark_R[r]):
            real = to < len(votes_XKS)
            at = (jnp.where(real, to, 0), 0, 0)
            votes_XKS = jax.lax.dynamic_update_slice(votes_XKS, jnp.where(real, sums_KS, 0)[None], at)
    return votes_XKS


@functools.partial(jax.jit, static_argnames=("config", "rules"), donate_argnames="state")
def settle(config: ModelConfig, rules: SlabRules, state: DeviceState, batch: SettleBatch) -> DeviceState:
    """Moves one prompt's survivors to its slab, and window pages to pages of its own."""
    kept, pools = state.kept, dict(state.cache.pools)
    assert kept is not None
    slabs = {}
    for place, owner in enumerate(full_owners(config)):
        votes_KS = kept.votes[owner][batch.votes_row] if rules.votes else None
        slab = settled(
            kept.slabs[owner],
            owner,
            rules,
            pools[owner],
            batch.table_P,
            batch.tokens,
            votes_KS,
            batch.slot,
            batch.scorer,
            batch.cut_O3[place],
        )
        limits_Z3 = slab.limits_Z3.at[batch.slot].set(batch.limits_O3[place])
        slabs[owner] = dataclasses.replace(slab, limits_Z3=limits_Z3)
    for owner in pools:
        name = kind_of(config.layers[owner], state.cache.kinds).name
        if name != FULL.name and name in batch.moves:
            pools[owner] = paged.copy_pages(pools[owner], *batch.moves[name])
    scorer_Z = kept.scorer_Z.at[batch.slot].set(batch.scorer)
    state = dataclasses.replace(state, kept=SlabState(slabs, kept.votes, scorer_Z))
    return with_pools(state, pools, state.rows)


@functools.partial(
    jax.jit, static_argnames=("network", "rules", "max_steps", "features"), donate_argnames="state"
)
def decode_slabs(
    network: SplitModel,
    rules: SlabRules,
    params: Sequence[jax.Array],
    state: DeviceState,
    batch: DecodeBatch,
    steps: jax.Array,
    *,
    max_steps: int,
    features: SamplingFeatures,
) -> tuple[DeviceState, StepOutput]:
    """Up to `steps` decode steps of rows in slabs, each with its eviction."""
    assert state.kept is not None
    scorer_Z = state.kept.scorer_Z
    every = len(batch.left_R) == len(scorer_Z)
    scorer_R = scorer_Z if every else scorer_Z.at[batch.slot_R].get(mode="clip")

    def cache(slabs: Slabs, pages: Paged) -> SlabRows:
        return SlabRows(slabs, pages, batch.slot_R, scorer_R, rules)

    loop = SlabLoop(network.model(params), batch, steps, max_steps, features)
    return loop.run(state, cache, lambda slab, rows: slab)


@functools.partial(jax.jit, static_argnames=("network", "max_steps", "features"), donate_argnames="state")
def decode_exact(
    network: SplitModel,
    params: Sequence[jax.Array],
    state: DeviceState,
    batch: DecodeBatch,
    steps: jax.Array,
    *,
    max_steps: int,
    features: SamplingFeatures,
) -> tuple[DeviceState, StepOutput]:
    """Up to `steps` decode steps of rows in slabs that are never full: no scores, no victims."""

    def cache(slabs: Slabs, pages: Paged) -> ExactRows:
        return ExactRows(slabs, pages, batch.slot_R)

    loop = SlabLoop(network.model(params), batch, steps, max_steps, features)
    return loop.run(state, cache, lambda slab, rows: slab.in_order(batch.left_R > 0, rows.position_B))


@dataclass(frozen=True)
class SlabLoop:
    """The loop of decode steps over slabs; see `decode_slabs`."""

    model: Transformer
    batch: DecodeBatch
    steps: jax.Array
    max_steps: int
    features: SamplingFeatures

    def run(
        self,
        state: DeviceState,
        cache: Callable[[Slabs, Paged], SlabRows | ExactRows],
        after: Callable[[PagedSlab, SlotRows], PagedSlab],
    ) -> tuple[DeviceState, StepOutput]:
        """The state after all steps, and what they produced.

        Args:
          cache: of one step. after: what the last step leaves of a slab.
        """
        batch, kept = self.batch, state.kept
        assert kept is not None
        rows = load_rows(state.rows, batch, self.features)
        loaded = {owner: slab.of_rows(batch.slot_R) for owner, slab in kept.slabs.items()}
        out = empty_output(self.max_steps, len(batch.left_R), self.features)
        # Full pages are not read here; only those of windows go through the loop.
        windows = {owner: pool for owner, pool in state.cache.pools.items() if owner not in kept.slabs}
        carry: SlabCarry = (jnp.int32(0), (windows, loaded, rows), batch.left_R, out)
        step = functools.partial(self._step, state.cache, cache)
        _, (windows, slabs, rows), _, out = jax.lax.while_loop(self._more, step, carry)
        slabs = {owner: after(slab, rows) for owner, slab in slabs.items()}
        if len(batch.left_R) == len(state.rows.token_B):
            rows = with_penalties_of(state.rows, rows, self.features)
        else:
            rows = store_rows(state.rows, batch.slot_R, rows, self.features)
        slabs = {owner: slab.with_rows(batch.slot_R, slabs[owner]) for owner, slab in kept.slabs.items()}
        kept = dataclasses.replace(kept, slabs=slabs)
        return with_pools(dataclasses.replace(state, kept=kept), {**state.cache.pools, **windows}, rows), out

    def _more(self, carry: SlabCarry) -> jax.Array:
        i, _, left_R, _ = carry
        return (i < self.steps) & jnp.any(left_R > 0)

    def _step(
        self, pages: Paged, cache: Callable[[Slabs, Paged], SlabRows | ExactRows], carry: SlabCarry
    ) -> SlabCarry:
        i, (pools, slabs, rows), left_R, out = carry
        pages = dataclasses.replace(pages, pools=pools)
        pages = pages.with_rows(self.batch.tables, rows.position_B, (left_R > 0).astype(jnp.int32))
        step = self.model.forward(rows.token_B[:, None], cache=cache(slabs, pages))
        assert isinstance(step.cache, SlabRows | ExactRows)
        known_R = self.batch.known_RN[:, i]
        rows, left_R, out = finish_decode(
            self.model, step.hidden_BTD[:, 0], i, rows, left_R, out, self.features, known_R
        )
        return i + 1, (step.cache.pages.pools, step.cache.slabs, rows), left_R, out
