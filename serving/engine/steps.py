"""The device half of the engine: two pure functions over the whole stack of layers, and their parts.

    prefill(params, state, batch)       -> state, StepOutput        chunks of R requests at once
    decode(params, state, batch, n)     -> state, StepOutput        up to n steps, fewer if all are done

`state` is donated: the pools are updated in place, and each program depends on the one before it. So a page
that the host reassigns while a step runs is overwritten only after that step has read it; no other fence is
needed. A request's sampling parameters are installed in its slot by the chunk that ends its prompt,
so decode needs nothing per request but who is live. A stack may run in segments of layers instead
(`serving.engine.segments`), with the same parts before and after them.

Axes: B slots, R requests of a call, C tokens of a chunk, P pages of a table row, N decode steps, V
vocabulary, E stop ids, K alternatives with log-probabilities.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mixattn.cache import Paged
from mixattn.cache.protocol import select_token
from mixattn.model import Transformer
from mixattn.sample import sample
from pallas_kernels.paged import Pool
from serving.engine.device_state import (
    NOT_FINITE,
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SlotRows,
    SplitModel,
    StepOutput,
)
from serving.engine.logits import (
    Logprobs,
    PenaltyRows,
    apply_penalties,
    logprobs,
    mask_forbidden,
    mask_stop_tokens,
)

type Draw = tuple[jax.Array, Logprobs | None]
# Steps done; pools by owner and rows; tokens each row may still produce; what was produced so far.
type Carry = tuple[jax.Array, tuple[dict[int, Pool], SlotRows], jax.Array, StepOutput]


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
    cache = state.cache.with_rows(batch.tables, batch.start_R, batch.count_R)
    step = model.forward(batch.tokens_RC, cache=cache, last_only=not features.prompt)
    assert isinstance(step.cache, Paged)
    rows, output = finish_prefill(model, step.hidden_BTD, state.rows, batch, features)
    return with_pools(state, step.cache.pools, rows), output


def finish_prefill(
    model: Transformer, hidden_RTD: jax.Array, rows: SlotRows, batch: PrefillBatch, features: SamplingFeatures
) -> tuple[SlotRows, StepOutput]:
    """Samples behind each chunk and installs the rows whose prompt ends.

    Args:
      hidden_RTD: hidden states after the final norm; T is the chunk with prompt log-probabilities, else 1.
    """
    hidden_RD, prompt = hidden_RTD[:, 0], None
    if features.prompt:
        hidden_RD = select_token(hidden_RTD, batch.count_R - 1)[:, 0]
        prompt = _of_prompt(model.head(hidden_RTD), batch.target_RC, features.top)
    position_R = batch.start_R + batch.count_R
    fresh = SlotRows(
        batch.known_R,
        position_R,
        batch.sampling_R,
        batch.stop_RE,
        batch.min_end_R,
        batch.logprobs_R,
        _penalties_of(features, batch.penalties),
        batch.allowed_RW,
    )
    ends_R = batch.slot_R < len(rows.token_B)

    def draw(hidden_RD: jax.Array) -> Draw:
        return _draw(model.head(hidden_RD), fresh, position_R, ends_R, features, batch.known_R)

    def no_token(hidden_RD: jax.Array) -> Draw:
        return jnp.full_like(batch.known_R, -1), _no_logprobs(position_R.shape, features.top)

    # The head can cost as much as all layers of a small model: skip it for chunks in mid prompt.
    drawn_R, lp = jax.lax.cond(jnp.any(ends_R), draw, no_token, hidden_RD)
    # In mid prompt too, before its pages are shared: every request that found them would break as well.
    broken_R = ~jnp.isfinite(hidden_RD).all(axis=-1) & (batch.count_R > 0)
    next_R = jnp.where(batch.known_R >= 0, batch.known_R, drawn_R)
    next_R = jnp.where(broken_R, NOT_FINITE, next_R)
    if fresh.penalties is not None:
        fresh = dataclasses.replace(fresh, penalties=fresh.penalties.counted(next_R, batch.known_R < 0))
    fresh = dataclasses.replace(fresh, token_B=next_R)
    return store_rows(rows, batch.slot_R, fresh, features), StepOutput(next_R, lp, prompt)


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

    def more(carry: Carry) -> jax.Array:
        i, _, left_R, _ = carry
        return (i < steps) & jnp.any(left_R > 0)

    def one(carry: Carry) -> Carry:
        i, (pools, rows), left_R, out = carry
        cache = dataclasses.replace(state.cache, pools=pools)
        cache = cache.with_rows(batch.tables, rows.position_B, (left_R > 0).astype(jnp.int32))
        step = model.forward(rows.token_B[:, None], cache=cache)
        assert isinstance(step.cache, Paged)
        known_R = None if batch.known_RN is None else batch.known_RN[:, i]
        rows, left_R, out = finish_decode(
            model, step.hidden_BTD[:, 0], i, rows, left_R, out, features, known_R
        )
        return i + 1, (step.cache.pools, rows), left_R, out

    rows = load_rows(state.rows, batch, features)
    out = empty_output(max_steps, len(batch.left_R), features)
    carry = jnp.int32(0), (state.cache.pools, rows), batch.left_R, out
    _, (pools, rows), _, out = jax.lax.while_loop(more, one, carry)
    if len(batch.left_R) == len(state.rows.token_B):
        rows = with_penalties_of(state.rows, rows, features)
    else:
        rows = store_rows(state.rows, batch.slot_R, rows, features)
    return with_pools(state, pools, rows), out


def with_pools(state: DeviceState, pools: dict[int, Pool], rows: SlotRows) -> DeviceState:
    """The state after a step."""
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, pools=pools), rows=rows)


def finish_decode(
    model: Transformer,
    hidden_RD: jax.Array,
    step: jax.Array,
    rows: SlotRows,
    left_R: jax.Array,
    out: StepOutput,
    features: SamplingFeatures,
    known_R: jax.Array | None = None,
) -> tuple[SlotRows, jax.Array, StepOutput]:
    """Samples one token per live row, writes it to row `step` of `out`, and advances the rows.

    Args:
      left_R: tokens each row may still produce; 0 = not live.
      known_R: tokens in place of sampled ones, -1 = none.
    """
    live_R = left_R > 0
    token_R, lp = _draw(model.head(hidden_RD), rows, rows.position_B + 1, live_R, features, known_R)
    stop_R = (token_R[:, None] == rows.stop_BE).any(axis=1)
    if known_R is not None:  # the host decides whether one of these ends the row
        stop_R &= known_R < 0
    stop_R |= token_R < 0
    produced = StepOutput(jnp.where(live_R, token_R, -1), lp)
    out = jax.tree.map(lambda all_N, new: all_N.at[step].set(new), out, produced)
    left_R = jnp.where(live_R & ~stop_R, left_R - 1, 0)
    return _advanced(rows, token_R, live_R, features), left_R, out


def empty_output(max_steps: int, R: int, features: SamplingFeatures) -> StepOutput:
    """The output of `max_steps` decode steps in which no row has produced anything yet."""
    token_NR = jnp.full((max_steps, R), -1, jnp.int32)
    return StepOutput(token_NR, _no_logprobs((max_steps, R), features.top))


def load_rows(rows: SlotRows, batch: DecodeBatch, features: SamplingFeatures) -> SlotRows:
    """The rows of a batch; with as many as slots, row r is slot r and no row is copied."""
    rows = rows if features.penalties else dataclasses.replace(rows, penalties=None)
    if len(batch.left_R) != len(rows.token_B):
        rows = jax.tree.map(lambda x: x.at[batch.slot_R].get(mode="clip"), rows)
    return dataclasses.replace(rows, allowed_BW=batch.allowed_RW)


def store_rows(old: SlotRows, slot_R: jax.Array, new: SlotRows, features: SamplingFeatures) -> SlotRows:
    """`old` with `new` in slots `slot_R`; a slot that does not exist is dropped."""
    kept = old if features.penalties else dataclasses.replace(old, penalties=None)
    new = dataclasses.replace(new, allowed_BW=None)
    stored = jax.tree.map(lambda old, new: old.at[slot_R].set(new, mode="drop"), kept, new)
    return with_penalties_of(old, stored, features)


def with_penalties_of(old: SlotRows, new: SlotRows, features: SamplingFeatures) -> SlotRows:
    new = dataclasses.replace(new, allowed_BW=None)
    return new if features.penalties else dataclasses.replace(new, penalties=old.penalties)


def _advanced(rows: SlotRows, token_B: jax.Array, live_B: jax.Array, features: SamplingFeatures) -> SlotRows:
    """Rows after one step; rows that are not live stay unchanged."""
    penalties = _penalties_of(features, rows.penalties)
    return dataclasses.replace(
        rows,
        token_B=jnp.where(live_B, token_B, rows.token_B),
        position_B=rows.position_B + live_B.astype(jnp.int32),
        penalties=penalties.counted(token_B, live_B) if features.penalties else None,
    )


def _draw(
    logits_BV: jax.Array,
    rows: SlotRows,
    position_B: jax.Array,
    live_B: jax.Array,
    features: SamplingFeatures,
    known_B: jax.Array | None = None,
) -> Draw:
    """Each row's token for its place `position_B`, and log-probabilities if compiled in.

    What is compiled in is computed only while a live row asks for it: one program serves all requests.

    Args:
      known_B: tokens in place of drawn ones, -1 = none.
    """
    finite_B = jnp.isfinite(logits_BV).all(axis=-1)
    if (penalties := _penalties_of(features, rows.penalties)) is not None:
        logits_BV = jax.lax.cond(
            jnp.any(penalties.active_B & live_B), apply_penalties, lambda x_BV, _: x_BV, logits_BV, penalties
        )
    if rows.allowed_BW is not None:
        logits_BV = mask_forbidden(logits_BV, rows.allowed_BW)
    logits_BV = mask_stop_tokens(logits_BV, rows.stop_BE, position_B < rows.min_end_B)
    token_B = sample(logits_BV, rows.sampling_B, position_B)
    if known_B is not None:
        token_B = jnp.where(known_B >= 0, known_B, token_B)
    token_B = jnp.where(finite_B, token_B, NOT_FINITE)
    if features.top < 0:
        return token_B, None
    lp = jax.lax.cond(
        jnp.any(rows.logprobs_B & live_B),
        lambda logits_BV, token_B: logprobs(logits_BV, token_B, features.top),
        lambda *_: _no_logprobs(token_B.shape, features.top),
        logits_BV,
        token_B,
    )
    return token_B, lp


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
