"""The device half of the engine: two pure functions, and the state between them.

    prefill(params, state, batch)       -> state, Drawn        chunks of R requests at once
    decode(params, state, batch, n)     -> state, Drawn        up to n steps, fewer if all are done

`state` is donated: the pools are updated in place, and each program depends on the one before it. So a page
that the host reassigns while a step runs is overwritten only after that step has read it; no other fence is
needed. A request's sampling parameters are installed in its slot by the chunk that ends its prompt,
so decode needs nothing per request but who is live.

Axes: B slots, R requests of a call, C tokens of a chunk, P pages of a table row, N decode steps, V
vocabulary, E stop ids, K alternatives with log-probabilities.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.cache import Kind, Paged
from mixattn.model import Transformer
from mixattn.sample import SamplingParams, sample
from pallas_kernels.paged import Pool
from serving.config import STOP_IDS
from serving.engine.logits import Logprobs, PenaltyRows, apply_penalties, logprobs, mask_stop_tokens

type Draw = tuple[jax.Array, Logprobs | None]
# Steps done; pools by owner and rows; tokens each row may still produce; what was produced so far.
type Carry = tuple[jax.Array, tuple[dict[int, Pool], "SlotRows"], jax.Array, "StepOutput"]

NOT_FINITE = -2  # in place of a token: logits, or hidden states of a prompt, held NaN or infinity


class SplitModel(NamedTuple):
    """A model without its weights, hashable.

    Programs take the weights as a flat list: jax flattens its arguments at every call, nnx variables in
    Python, which was a third of a call's own time.
    """

    graphdef: nnx.GraphDef[Transformer]
    tree: Any

    @classmethod
    def split(cls, model: Transformer) -> tuple["SplitModel", list[jax.Array]]:
        graphdef, params = nnx.split(model)
        flat, tree = jax.tree.flatten(params)
        return cls(graphdef, tree), flat

    def model(self, params: Sequence[jax.Array]) -> Transformer:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.tree, params))


class SamplingFeatures(NamedTuple):
    """What a program does beyond plain sampling. A batch runs with the features of its most demanding row.

    Attributes:
      penalties: penalties and bias.
      top: log-probabilities of the token and this many alternatives; -1 = none.
      prompt: also of the prompt's tokens (prefill).
    """

    penalties: bool = False
    top: int = -1
    prompt: bool = False


PLAIN = SamplingFeatures()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_B", "position_B", "sampling_B", "stop_BE", "min_end_B", "penalties"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SlotRows:
    """What the device keeps for each slot.

    Attributes:
      token_B: newest token, whose KV is not in the pages yet.
      position_B: its position.
      sampling_B: how to sample the row.
      stop_BE: ids that end it; -1 = none.
      min_end_B: the first position at which it may end.
      penalties: if compiled in; valid for the rows that ask for them.
    """

    token_B: jax.Array
    position_B: jax.Array
    sampling_B: SamplingParams
    stop_BE: jax.Array
    min_end_B: jax.Array
    penalties: PenaltyRows | None

    @classmethod
    def empty(cls, slots: int, vocab: int = 0) -> "SlotRows":
        """`vocab`: 0 = without penalties."""
        # Every leaf its own buffer: donating one buffer under two names is an error.
        token_B, position_B, min_end_B = (jnp.zeros(slots, jnp.int32) for _ in range(3))
        stop_BE = jnp.full((slots, STOP_IDS), -1, jnp.int32)
        penalties = PenaltyRows.none(slots, vocab) if vocab else None
        return cls(token_B, position_B, SamplingParams.greedy(slots), stop_BE, min_end_B, penalties)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["cache", "rows"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """Everything on the device that a step changes. Donated to every call."""

    cache: Paged
    rows: SlotRows


class PrefillBatch(NamedTuple):
    """Chunks to compute; numpy on the host.

    Attributes:
      tokens_RC, start_R, count_R: chunk r is `count_R[r]` tokens from position `start_R[r]`; 0 = padding.
      target_RC: the prompt's token after each, for log-probabilities of prompts.
      tables: by kind, the requests' page table rows.
      slot_R: slot to install the request in after its last chunk; the number of slots = none.
      known_R: its next token if known (it was preempted), -1 = sample it.
      sampling_R, stop_RE, min_end_R, penalties: its sampling; penalties where compiled in.
    """

    tokens_RC: Any
    start_R: Any
    count_R: Any
    target_RC: Any
    tables: Mapping[Kind, Any]
    slot_R: Any
    known_R: Any
    sampling_R: SamplingParams
    stop_RE: Any
    min_end_R: Any
    penalties: PenaltyRows | None


class DecodeBatch(NamedTuple):
    """Rows to decode; numpy on the host.

    Attributes:
      tables: by kind, their page tables.
      slot_R: their slots; the number of slots = padding. With as many rows as slots, row r is slot r.
      left_R: tokens each may still produce in this call; 0 for rows that do not decode.
    """

    tables: Mapping[Kind, Any]
    slot_R: Any
    left_R: Any


class StepOutput(NamedTuple):
    """What a program returns.

    Attributes:
      token: next_R of a prefill; token_NR of a decode, -1 where a row produced none.
      logprobs: of these tokens, with the same leading axes.
      prompt: log-probabilities of `target_RC`.
    """

    token: Any
    logprobs: Logprobs | None = None
    prompt: Logprobs | None = None


@functools.partial(jax.jit, static_argnames=("network", "features"), donate_argnames="state")
def prefill(
    network: SplitModel,
    params: Sequence[jax.Array],
    state: DeviceState,
    batch: PrefillBatch,
    *,
    features: SamplingFeatures,
) -> tuple[DeviceState, StepOutput]:
    """Computes chunks and installs the rows whose prompt ends; returns each row's next token."""
    model = network.model(params)
    rows = state.rows
    cache = state.cache.with_rows(batch.tables, batch.start_R, batch.count_R)
    step = model.forward(batch.tokens_RC, cache=cache, last_only=not features.prompt)
    assert isinstance(step.cache, Paged)
    hidden_RD, prompt = step.hidden_BTD[:, 0], None
    if features.prompt:
        hidden_RD = cache.select_last(step.hidden_BTD)[:, 0]
        prompt = _of_prompt(model.head(step.hidden_BTD), batch.target_RC, features.top)
    position_R = batch.start_R + batch.count_R
    fresh = SlotRows(
        batch.known_R,
        position_R,
        batch.sampling_R,
        batch.stop_RE,
        batch.min_end_R,
        _penalties_of(features, batch.penalties),
    )

    def draw(hidden_RD: jax.Array) -> Draw:
        return _draw(model.head(hidden_RD), fresh, position_R, features)

    def no_token(hidden_RD: jax.Array) -> Draw:
        return jnp.full_like(batch.known_R, -1), _no_logprobs(position_R.shape, features.top)

    # The head can cost as much as all layers of a small model: skip it for chunks in mid prompt.
    ends = jnp.any(batch.slot_R < len(rows.token_B))
    drawn_R, lp = jax.lax.cond(ends, draw, no_token, hidden_RD)
    # In mid prompt too, before its pages are shared: every request that found them would break as well.
    broken_R = ~jnp.isfinite(hidden_RD).all(axis=-1) & (batch.count_R > 0)
    next_R = jnp.where(batch.known_R >= 0, batch.known_R, drawn_R)
    next_R = jnp.where(broken_R, NOT_FINITE, next_R)
    if fresh.penalties is not None:
        fresh = dataclasses.replace(fresh, penalties=fresh.penalties.counted(next_R, batch.known_R < 0))
    fresh = dataclasses.replace(fresh, token_B=next_R)
    old = rows if features.penalties else dataclasses.replace(rows, penalties=None)
    new = _installed(old, batch.slot_R, fresh)
    if not features.penalties:
        new = dataclasses.replace(new, penalties=rows.penalties)
    return DeviceState(dataclasses.replace(state.cache, pools=step.cache.pools), new), StepOutput(
        next_R, lp, prompt
    )


@functools.partial(jax.jit, static_argnames=("network", "max_steps", "features"), donate_argnames="state")
def decode(
    network: SplitModel,
    params: Sequence[jax.Array],
    state: DeviceState,
    batch: DecodeBatch,
    steps: jax.Array,
    *,
    max_steps: int,
    features: SamplingFeatures,
) -> tuple[DeviceState, StepOutput]:
    """Up to `steps` decode steps of the batch's rows.

    Args:
      steps: how many, at most `max_steps` (the leading axis of the output).
    """
    model = network.model(params)
    R = len(batch.left_R)
    every = len(state.rows.token_B) == R  # then row r is slot r, and no row is copied

    def more(carry: Carry) -> jax.Array:
        i, _, left_R, _ = carry
        return (i < steps) & jnp.any(left_R > 0)

    def one(carry: Carry) -> Carry:
        i, (pools, rows), left_R, out = carry
        live_R = left_R > 0
        cache = dataclasses.replace(state.cache, pools=pools)
        cache = cache.with_rows(batch.tables, rows.position_B, live_R.astype(jnp.int32))
        step = model.forward(rows.token_B[:, None], cache=cache)
        assert isinstance(step.cache, Paged)
        token_R, lp = _draw(model.head(step.hidden_BTD[:, 0]), rows, rows.position_B + 1, features)
        stop_R = (token_R[:, None] == rows.stop_BE).any(axis=1) | (token_R < 0)
        out = jax.tree.map(
            lambda all_N, new: all_N.at[i].set(new), out, StepOutput(jnp.where(live_R, token_R, -1), lp)
        )
        left_R = jnp.where(live_R & ~stop_R, left_R - 1, 0)
        return i + 1, (step.cache.pools, _advanced(rows, token_R, live_R, features)), left_R, out

    old = state.rows if features.penalties else dataclasses.replace(state.rows, penalties=None)
    rows = old if every else jax.tree.map(lambda x: x.at[batch.slot_R].get(mode="clip"), old)
    out = StepOutput(jnp.full((max_steps, R), -1, jnp.int32), _no_logprobs((max_steps, R), features.top))
    carry = jnp.int32(0), (state.cache.pools, rows), batch.left_R, out
    _, (pools, rows), _, out = jax.lax.while_loop(more, one, carry)
    rows = rows if every else _installed(old, batch.slot_R, rows)
    if not features.penalties:
        rows = dataclasses.replace(rows, penalties=state.rows.penalties)
    return DeviceState(dataclasses.replace(state.cache, pools=pools), rows), out


def _advanced(rows: SlotRows, token_B: jax.Array, live_B: jax.Array, features: SamplingFeatures) -> SlotRows:
    """Rows after one step; rows that are not live stay unchanged."""
    penalties = _penalties_of(features, rows.penalties)
    return dataclasses.replace(
        rows,
        token_B=jnp.where(live_B, token_B, rows.token_B),
        position_B=rows.position_B + live_B.astype(jnp.int32),
        penalties=penalties.counted(token_B, live_B) if features.penalties else None,
    )


def _installed(rows: SlotRows, slot_R: jax.Array, new: SlotRows) -> SlotRows:
    """Rows with `new` in their slots; a slot that does not exist is dropped."""
    return jax.tree.map(lambda old, new: old.at[slot_R].set(new, mode="drop"), rows, new)


def _draw(logits_BV: jax.Array, rows: SlotRows, position_B: jax.Array, features: SamplingFeatures) -> Draw:
    """Each row's token for its place `position_B`, and log-probabilities if compiled in."""
    finite_B = jnp.isfinite(logits_BV).all(axis=-1)
    if features.penalties:
        logits_BV = apply_penalties(logits_BV, _penalties_of(features, rows.penalties))
    logits_BV = mask_stop_tokens(logits_BV, rows.stop_BE, position_B < rows.min_end_B)
    token_B = jnp.where(finite_B, sample(logits_BV, rows.sampling_B, position_B), NOT_FINITE)
    return token_B, logprobs(logits_BV, token_B, features.top) if features.top >= 0 else None


def _of_prompt(logits_RCV: jax.Array, target_RC: jax.Array, k: int) -> Logprobs:
    R, C, V = logits_RCV.shape
    flat = logprobs(logits_RCV.reshape(R * C, V), target_RC.reshape(R * C), k)
    return jax.tree.map(lambda x: x.reshape(R, C, *x.shape[1:]), flat)


def _no_logprobs(shape: tuple[int, ...], k: int) -> Logprobs | None:
    if k < 0:
        return None
    return Logprobs(
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, k), jnp.float32),
        jnp.zeros((*shape, k), jnp.int32),
    )


def _penalties_of(features: SamplingFeatures, penalties: PenaltyRows | None) -> Any:
    """The penalties where the features include them, else None."""
    assert not features.penalties or penalties is not None
    return penalties if features.penalties else None
