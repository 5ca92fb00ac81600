"""The device half of the engine: two pure functions, compiled ahead of time for a short list of shapes.

    prefill(params, state, batch)                -> state, next_R      chunks of R requests at once
    decode(params, state, tables, left, n)       -> state, out_NB      up to n steps, fewer if all are done

`state` is donated: the pools are updated in place. A request's sampling parameters are installed in its slot
by the chunk that ends its prompt, so decode needs nothing per request but who is live. Calls go to compiled
executables by shape; a shape that was not compiled at start-up is an error, never a silent compilation.

Axes: B slots, R requests in a prefill, C tokens of a chunk, P pages of a table row, N decode steps, V
vocabulary, E stop ids.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.model import Transformer
from mixattn.paging import Kind, Paged
from mixattn.sample import Knobs, sample
from serving.config import STOP_IDS

NOT_FINITE = -2  # in place of a token: the logits held NaN or infinity


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_B", "position_B", "knobs_B", "stop_BE"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Rows:
    """What the device remembers of each slot.

    Attributes:
      token_B: newest token, whose KV is not in the pages yet.
      position_B: its position.
      knobs_B: how to sample the row.
      stop_BE: ids that end it; -1 = none.
    """

    token_B: jax.Array
    position_B: jax.Array
    knobs_B: Knobs
    stop_BE: jax.Array

    @classmethod
    def empty(cls, slots: int) -> "Rows":
        # Every leaf its own buffer: donating one buffer under two names is an error.
        token_B, position_B = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.int32)
        return cls(token_B, position_B, Knobs.greedy(slots), jnp.full((slots, STOP_IDS), -1, jnp.int32))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["cache", "rows"], meta_fields=[])
@dataclass(frozen=True)
class State:
    """Everything on the device that a step changes. Donated to every call."""

    cache: Paged
    rows: Rows


class PrefillBatch(NamedTuple):
    """Chunks to compute; numpy on the host.

    Attributes:
      tokens_RC, start_R, count_R: chunk r is `count_R[r]` tokens from position `start_R[r]`; 0 = padding.
      tables: by kind, the requests' page table rows.
      slot_R: where to install the request after its last chunk; the number of slots = do not.
      known_R: its next token if it is known (it was preempted), -1 = sample it.
      knobs_R, stop_RE: its sampling.
    """

    tokens_RC: Any
    start_R: Any
    count_R: Any
    tables: Mapping[Kind, Any]
    slot_R: Any
    known_R: Any
    knobs_R: Knobs
    stop_RE: Any


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def prefill(graphdef, params, state: State, batch: PrefillBatch) -> tuple[State, jax.Array]:
    """Computes chunks, installs the rows that end; returns each row's next token."""
    model: Transformer = nnx.merge(graphdef, params)
    rows = state.rows
    cache = state.cache.with_rows(batch.tables, batch.start_R, batch.count_R)
    step = model.forward(batch.tokens_RC, cache=cache, last_only=True)
    assert isinstance(step.cache, Paged)
    position_R = batch.start_R + batch.count_R
    next_R = _draw(model.head(step.hidden_BTD[:, 0]), batch.knobs_R, position_R)
    next_R = jnp.where(batch.known_R >= 0, batch.known_R, next_R)
    fresh = Rows(next_R, position_R, batch.knobs_R, batch.stop_RE)
    rows = jax.tree.map(lambda old, new: old.at[batch.slot_R].set(new, mode="drop"), rows, fresh)
    return State(dataclasses.replace(state.cache, pools=step.cache.pools), rows), next_R


@functools.partial(jax.jit, static_argnames=("graphdef", "most_steps"), donate_argnames="state")
def decode(
    graphdef, params, state: State, tables: Mapping[Kind, jax.Array], left_B, steps, *, most_steps: int
) -> tuple[State, jax.Array]:
    """Up to `steps` decode steps.

    Args:
      left_B: tokens each slot may still produce in this call; 0 for slots that do not decode.
      steps: how many steps, at most `most_steps` (the height of the answer).

    Returns:
      The state and out_NB: tokens by step and slot, -1 where a slot produced none.
    """
    model: Transformer = nnx.merge(graphdef, params)
    B = left_B.shape[0]

    def more(carry):
        i, _, left_B, _ = carry
        return (i < steps) & jnp.any(left_B > 0)

    def one(carry):
        i, state, left_B, out_NB = carry
        rows, live_B = state.rows, left_B > 0
        cache = state.cache.with_rows(tables, rows.position_B, live_B.astype(jnp.int32))
        step = model.forward(rows.token_B[:, None], cache=cache)
        assert isinstance(step.cache, Paged)
        token_B = _draw(model.head(step.hidden_BTD[:, 0]), rows.knobs_B, rows.position_B + 1)
        stop_B = (token_B[:, None] == rows.stop_BE).any(axis=1) | (token_B < 0)
        rows = dataclasses.replace(
            rows,
            token_B=jnp.where(live_B, token_B, rows.token_B),
            position_B=rows.position_B + live_B.astype(jnp.int32),
        )
        out_NB = out_NB.at[i].set(jnp.where(live_B, token_B, -1))
        left_B = jnp.where(live_B & ~stop_B, left_B - 1, 0)
        cache = dataclasses.replace(state.cache, pools=step.cache.pools)
        return i + 1, State(cache, rows), left_B, out_NB

    out_NB = jnp.full((most_steps, B), -1, jnp.int32)
    _, state, _, out_NB = jax.lax.while_loop(more, one, (jnp.int32(0), state, left_B, out_NB))
    return state, out_NB


def _draw(logits_BV: jax.Array, knobs_B: Knobs, position_B: jax.Array) -> jax.Array:
    token_B = sample(logits_BV, knobs_B, position_B)
    return jnp.where(jnp.isfinite(logits_BV).all(axis=-1), token_B, NOT_FINITE)


class Programs:
    """The compiled list: prefill for each (requests, chunk) bucket, and one decode.

    Args:
      buckets: (R, C) pairs, C at most the chunk size; one of the largest C must exist.
      table_pages: by kind, pages of a request's table row.
    """

    MOST = 64  # programs; more than this is a configuration mistake, not a workload

    def __init__(
        self,
        model: Transformer,
        cache: Paged,
        *,
        slots: int,
        buckets: Sequence[tuple[int, int]],
        most_steps: int,
    ):
        if len(buckets) + 1 > self.MOST:
            raise ValueError(f"{len(buckets) + 1} programs asked for; at most {self.MOST} are compiled")
        self.graphdef, self.params = nnx.split(model)
        self.buckets = sorted(buckets, key=lambda rc: (rc[0] * rc[1], rc))
        self.slots, self.most_steps = slots, most_steps
        self.compile_s: dict[str, float] = {}
        self._table_pages = {kind: table.shape[1] for kind, table in cache.tables.items()}
        # Tables and row counts come with every call; what stays in the state are the pools.
        nothing = jnp.zeros(0, jnp.int32)
        self._cache = dataclasses.replace(cache, tables={}, start_B=nothing, count_B=nothing)
        self._compiled: dict[Any, Callable] = {}

    def fresh_state(self) -> State:
        """An empty state: zeroed pools (a NaN in a masked place would leak through 0 * NaN), empty rows."""
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._cache)
        return State(cache, Rows.empty(self.slots))

    def bucket(self, requests: int, chunk_tok: int) -> tuple[int, int]:
        """The smallest compiled prefill shape that holds `requests` chunks of up to `chunk_tok` tokens.

        Raises:
          ValueError: none does.
        """
        for R, C in self.buckets:
            if requests <= R and chunk_tok <= C:
                return R, C
        raise ValueError(f"no prefill program for {requests} chunks of {chunk_tok}; there are {self.buckets}")

    def compile(self, report: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        """Compiles the whole list; `report` hears each program's name and seconds."""
        state = jax.eval_shape(self.fresh_state)
        shapes = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
        model = (self.graphdef, shapes(self.params), state)
        for R, C in self.buckets:
            lowered = functools.partial(prefill.lower, *model, shapes(self.blank_prefill(R, C)))
            self._build(("prefill", R, C), lowered, report)
        rows = shapes((self._blank_tables(self.slots), np.zeros(self.slots, np.int32), np.int32(0)))
        lowered = functools.partial(decode.lower, *model, *rows, most_steps=self.most_steps)
        self._build(("decode", self.slots, self.most_steps), lowered, report)

    def prefill(self, state: State, batch: PrefillBatch) -> tuple[State, jax.Array]:
        return self._compiled["prefill", *batch.tokens_RC.shape](self.params, state, batch)

    def decode(self, state: State, tables, left_B, steps: int) -> tuple[State, jax.Array]:
        run = self._compiled["decode", self.slots, self.most_steps]
        return run(self.params, state, tables, left_B, np.int32(steps))

    def blank_prefill(self, R: int, C: int) -> PrefillBatch:
        """A batch of padding; the engine fills in what runs."""
        return PrefillBatch(
            tokens_RC=np.zeros((R, C), np.int32),
            start_R=np.zeros(R, np.int32),
            count_R=np.zeros(R, np.int32),
            tables=self._blank_tables(R),
            slot_R=np.full(R, self.slots, np.int32),
            known_R=np.full(R, -1, np.int32),
            knobs_R=Knobs.greedy(R, np),
            stop_RE=np.full((R, STOP_IDS), -1, np.int32),
        )

    def _blank_tables(self, rows: int) -> dict[Kind, np.ndarray]:
        return {kind: np.zeros((rows, pages), np.int32) for kind, pages in self._table_pages.items()}

    def _build(self, name: tuple, lower: Callable, report: Callable[[str, float], None]) -> None:
        began = time.perf_counter()
        self._compiled[name] = lower().compile()
        label = " ".join(map(str, name))
        self.compile_s[label] = time.perf_counter() - began
        report(label, self.compile_s[label])
