"""The device half of the engine: two pure functions, compiled ahead of time for a short list of shapes.

    prefill(params, state, batch)                -> state, Drawn        chunks of R requests at once
    decode(params, state, tables, left, n)       -> state, Drawn        up to n steps, fewer if all are done

`state` is donated: the pools are updated in place, and each program depends on the one before it. So a page
that the host gives away while a step is under way is overwritten only after that step has read it; no other
fence is needed. A request's sampling parameters are installed in its slot by the chunk that ends its prompt,
so decode needs nothing per request but who is live. Calls go to compiled executables by shape and level; what
was not compiled at start-up is an error, never a silent compilation.

Axes: B slots, R requests in a prefill, C tokens of a chunk, P pages of a table row, N decode steps, V
vocabulary, E stop ids, K alternatives with log-probabilities.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from serving.logits import Logprobs, Shaping, hide_stops, logprobs, shape
from serving.request import Sampling

NOT_FINITE = -2  # in place of a token: the logits held NaN or infinity


class Level(NamedTuple):
    """What a program does beyond the plain draw. A batch is served at its most demanding row's level.

    Attributes:
      shaped: penalties and bias.
      top: log-probabilities of the token and so many alternatives; -1 = none.
      prompt: those of the prompt too (prefill).
    """

    shaped: bool = False
    top: int = -1
    prompt: bool = False


PLAIN = Level()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_B", "position_B", "knobs_B", "stop_BE", "least_B", "shaping"],
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
      least_B: the first position at which it may end.
      shaping: if it is compiled in; true of the rows that ask for it.
    """

    token_B: jax.Array
    position_B: jax.Array
    knobs_B: Knobs
    stop_BE: jax.Array
    least_B: jax.Array
    shaping: Shaping | None

    @classmethod
    def empty(cls, slots: int, vocab: int = 0) -> "Rows":
        """`vocab`: 0 = without shaping."""
        # Every leaf its own buffer: donating one buffer under two names is an error.
        token_B, position_B, least_B = (jnp.zeros(slots, jnp.int32) for _ in range(3))
        stop_BE = jnp.full((slots, STOP_IDS), -1, jnp.int32)
        shaping = Shaping.none(slots, vocab) if vocab else None
        return cls(token_B, position_B, Knobs.greedy(slots), stop_BE, least_B, shaping)


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
      target_RC: the prompt's token behind each; where log-probabilities of prompts are asked for.
      tables: by kind, the requests' page table rows.
      slot_R: where to install the request after its last chunk; the number of slots = do not.
      known_R: its next token if it is known (it was preempted), -1 = sample it.
      knobs_R, stop_RE, least_R, shaping: its sampling; shaping at levels that have it.
    """

    tokens_RC: Any
    start_R: Any
    count_R: Any
    target_RC: Any
    tables: Mapping[Kind, Any]
    slot_R: Any
    known_R: Any
    knobs_R: Knobs
    stop_RE: Any
    least_R: Any
    shaping: Shaping | None


class Drawn(NamedTuple):
    """What a program answers.

    Attributes:
      token: next_R of a prefill; token_NB of a decode, -1 where a slot produced none.
      logprobs: of these, with the same leading axes.
      prompt: of `target_RC`.
    """

    token: Any
    logprobs: Logprobs | None = None
    prompt: Logprobs | None = None


@functools.partial(jax.jit, static_argnames=("graphdef", "level"), donate_argnames="state")
def prefill(graphdef, params, state: State, batch: PrefillBatch, *, level: Level) -> tuple[State, Drawn]:
    """Computes chunks, installs the rows that end; returns each row's next token."""
    model: Transformer = nnx.merge(graphdef, params)
    rows = state.rows
    cache = state.cache.with_rows(batch.tables, batch.start_R, batch.count_R)
    step = model.forward(batch.tokens_RC, cache=cache, last_only=not level.prompt)
    assert isinstance(step.cache, Paged)
    hidden_RD, prompt = step.hidden_BTD[:, 0], None
    if level.prompt:
        hidden_RD = cache.pick_last(step.hidden_BTD)[:, 0]
        prompt = _of_prompt(model.head(step.hidden_BTD), batch.target_RC, level.top)
    position_R = batch.start_R + batch.count_R
    fresh = Rows(
        batch.known_R, position_R, batch.knobs_R, batch.stop_RE, batch.least_R, _shaping(level, batch.shaping)
    )
    drawn_R, lp = _draw(model.head(hidden_RD), fresh, position_R, level)
    next_R = jnp.where(batch.known_R >= 0, batch.known_R, drawn_R)
    if fresh.shaping is not None:
        fresh = dataclasses.replace(fresh, shaping=fresh.shaping.counted(next_R, batch.known_R < 0))
    fresh = dataclasses.replace(fresh, token_B=next_R)
    old = rows if level.shaped else dataclasses.replace(rows, shaping=None)
    new = jax.tree.map(lambda old, new: old.at[batch.slot_R].set(new, mode="drop"), old, fresh)
    if not level.shaped:
        new = dataclasses.replace(new, shaping=rows.shaping)
    return State(dataclasses.replace(state.cache, pools=step.cache.pools), new), Drawn(next_R, lp, prompt)


@functools.partial(jax.jit, static_argnames=("graphdef", "most_steps", "level"), donate_argnames="state")
def decode(
    graphdef,
    params,
    state: State,
    tables: Mapping[Kind, jax.Array],
    left_B,
    steps,
    *,
    most_steps: int,
    level: Level,
) -> tuple[State, Drawn]:
    """Up to `steps` decode steps.

    Args:
      left_B: tokens each slot may still produce in this call; 0 for slots that do not decode.
      steps: how many steps, at most `most_steps` (the height of the answer).
    """
    model: Transformer = nnx.merge(graphdef, params)
    B = left_B.shape[0]

    def more(carry):
        i, _, left_B, _ = carry
        return (i < steps) & jnp.any(left_B > 0)

    def one(carry):
        i, state, left_B, out = carry
        rows, live_B = state.rows, left_B > 0
        cache = state.cache.with_rows(tables, rows.position_B, live_B.astype(jnp.int32))
        step = model.forward(rows.token_B[:, None], cache=cache)
        assert isinstance(step.cache, Paged)
        token_B, lp = _draw(model.head(step.hidden_BTD[:, 0]), rows, rows.position_B + 1, level)
        stop_B = (token_B[:, None] == rows.stop_BE).any(axis=1) | (token_B < 0)
        if level.shaped:
            rows = dataclasses.replace(rows, shaping=_shaping(level, rows.shaping).counted(token_B, live_B))
        rows = dataclasses.replace(
            rows,
            token_B=jnp.where(live_B, token_B, rows.token_B),
            position_B=rows.position_B + live_B.astype(jnp.int32),
        )
        answer = Drawn(jnp.where(live_B, token_B, -1), lp)
        out = jax.tree.map(lambda all_N, new: all_N.at[i].set(new), out, answer)
        left_B = jnp.where(live_B & ~stop_B, left_B - 1, 0)
        cache = dataclasses.replace(state.cache, pools=step.cache.pools)
        return i + 1, State(cache, rows), left_B, out

    out = Drawn(jnp.full((most_steps, B), -1, jnp.int32), _no_logprobs((most_steps, B), level.top))
    _, state, _, out = jax.lax.while_loop(more, one, (jnp.int32(0), state, left_B, out))
    return state, out


def _draw(logits_BV: jax.Array, rows: Rows, position_B: jax.Array, level: Level):
    """Each row's token for its place `position_B`, and log-probabilities if the level has them."""
    finite_B = jnp.isfinite(logits_BV).all(axis=-1)
    if level.shaped:
        logits_BV = shape(logits_BV, _shaping(level, rows.shaping))
    logits_BV = hide_stops(logits_BV, rows.stop_BE, position_B < rows.least_B)
    token_B = jnp.where(finite_B, sample(logits_BV, rows.knobs_B, position_B), NOT_FINITE)
    return token_B, logprobs(logits_BV, token_B, level.top) if level.top >= 0 else None


def _of_prompt(logits_RCV: jax.Array, target_RC: jax.Array, k: int) -> Logprobs:
    R, C, V = logits_RCV.shape
    flat = logprobs(logits_RCV.reshape(R * C, V), target_RC.reshape(R * C), k)
    return jax.tree.map(lambda x: x.reshape(R, C, *x.shape[1:]), flat)


def _no_logprobs(shape: tuple[int, ...], k: int) -> Logprobs | None:
    if k < 0:
        return None
    return Logprobs(
        jnp.zeros(shape, jnp.float32), jnp.zeros((*shape, k), jnp.float32), jnp.zeros((*shape, k), jnp.int32)
    )


def _shaping(level: Level, shaping: Shaping | None) -> Any:
    """The shaping of a level that has it, None of one that has not."""
    assert not level.shaped or shaping is not None
    return shaping if level.shaped else None


class Programs:
    """The compiled list: prefill for each (requests, chunk) bucket and decode, at each level.

    Args:
      buckets: (R, C) pairs, C at most the chunk size; one of the largest C must exist.
      levels: of what requests may ask; `PLAIN` among them.
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
        levels: Sequence[Level] = (PLAIN,),
    ):
        decodes = {level._replace(prompt=False) for level in levels}
        if (asked := len(buckets) * len(levels) + len(decodes)) > self.MOST:
            raise ValueError(f"{asked} programs asked for; at most {self.MOST} are compiled")
        self.graphdef, self.params = nnx.split(model)
        self.buckets = sorted(buckets, key=lambda rc: (rc[0] * rc[1], rc))
        self.slots, self.most_steps, self.levels = slots, most_steps, sorted(levels)
        self.vocab = model.config.vocab_size
        self.compile_s: dict[str, float] = {}
        self._table_pages = {kind: table.shape[1] for kind, table in cache.tables.items()}
        # Tables and row counts come with every call; what stays in the state are the pools.
        nothing = jnp.zeros(0, jnp.int32)
        self._cache = dataclasses.replace(cache, tables={}, start_B=nothing, count_B=nothing)
        self._compiled: dict[Any, Callable] = {}

    def fresh_state(self) -> State:
        """An empty state: zeroed pools (a NaN in a masked place would leak through 0 * NaN), empty rows."""
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._cache)
        shaped = any(level.shaped for level in self.levels)
        return State(cache, Rows.empty(self.slots, self.vocab if shaped else 0))

    def bucket(self, requests: int, chunk_tok: int) -> tuple[int, int]:
        """The smallest compiled prefill shape that holds `requests` chunks of up to `chunk_tok` tokens.

        Raises:
          ValueError: none does.
        """
        for R, C in self.buckets:
            if requests <= R and chunk_tok <= C:
                return R, C
        raise ValueError(f"no prefill program for {requests} chunks of {chunk_tok}; there are {self.buckets}")

    def level(self, asked: Iterable[Sampling], *, prompt: bool) -> Level:
        """The least compiled level that serves all of `asked`.

        Raises:
          ValueError: none does.
        """
        want = PLAIN
        for sampling in asked:
            whole = prompt and sampling.prompt_logprobs is not None
            top = sampling.top if prompt or sampling.logprobs is not None else -1
            want = Level(want.shaped or sampling.shaped, max(want.top, top), want.prompt or whole)
        for level in self.levels:
            if _serves(level, want):
                return level
        raise ValueError(f"no program serves {want}; there are {self.levels}")

    def compile(self, report: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        """Compiles the whole list; `report` hears each program's name and seconds."""
        state = jax.eval_shape(self.fresh_state)
        shapes = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
        model = (self.graphdef, shapes(self.params), state)
        for level in self.levels:
            for R, C in self.buckets:
                batch = shapes(self.blank_prefill(R, C, level))
                lowered = functools.partial(prefill.lower, *model, batch, level=level)
                self._build(("prefill", R, C, level), lowered, report)
        rows = shapes((self._blank_tables(self.slots), np.zeros(self.slots, np.int32), np.int32(0)))
        for level in sorted({level._replace(prompt=False) for level in self.levels}):
            lowered = functools.partial(decode.lower, *model, *rows, most_steps=self.most_steps, level=level)
            self._build(("decode", self.slots, self.most_steps, level), lowered, report)

    def borrow(self, other: "Programs") -> None:
        """Takes over the compiled programs of an engine of the same model and pools, instead of compiling.

        Raises:
          ValueError: they do not do all that these would.
        """
        for name in ("graphdef", "slots", "_table_pages"):
            if (mine := getattr(self, name)) != (theirs := getattr(other, name)):
                raise ValueError(f"programs to share have {name} {theirs}, this engine needs {mine}")
        if (mine := _shapes(self._cache)) != (theirs := _shapes(other._cache)):
            raise ValueError(f"programs to share have pools {theirs}, this engine needs {mine}")
        if not self._covered(other):
            mine, theirs = (f"{p.buckets}, {p.most_steps} steps, {p.levels}" for p in (self, other))
            raise ValueError(f"programs to share are {theirs}; this engine needs {mine}")
        for name in ("buckets", "most_steps", "levels", "_compiled", "compile_s"):
            setattr(self, name, getattr(other, name))

    def _covered(self, other: "Programs") -> bool:
        rows, chunk = (max(sizes) for sizes in zip(*self.buckets))
        return (
            self.most_steps <= other.most_steps
            and any(rows <= R and chunk <= C for R, C in other.buckets)
            and all(any(_serves(has, level) for has in other.levels) for level in self.levels)
        )

    def prefill(self, state: State, batch: PrefillBatch, level: Level) -> tuple[State, Drawn]:
        return self._compiled["prefill", *batch.tokens_RC.shape, level](self.params, state, batch)

    def decode(self, state: State, tables, left_B, steps: int, level: Level) -> tuple[State, Drawn]:
        run = self._compiled["decode", self.slots, self.most_steps, level]
        return run(self.params, state, tables, left_B, np.int32(steps))

    def blank_prefill(self, R: int, C: int, level: Level) -> PrefillBatch:
        """A batch of padding; the engine fills in what runs."""
        return PrefillBatch(
            tokens_RC=np.zeros((R, C), np.int32),
            start_R=np.zeros(R, np.int32),
            count_R=np.zeros(R, np.int32),
            target_RC=np.zeros((R, C), np.int32),
            tables=self._blank_tables(R),
            slot_R=np.full(R, self.slots, np.int32),
            known_R=np.full(R, -1, np.int32),
            knobs_R=Knobs.greedy(R, np),
            stop_RE=np.full((R, STOP_IDS), -1, np.int32),
            least_R=np.zeros(R, np.int32),
            shaping=Shaping.none(R, self.vocab, np) if level.shaped else None,
        )

    def _blank_tables(self, rows: int) -> dict[Kind, np.ndarray]:
        return {kind: np.zeros((rows, pages), np.int32) for kind, pages in self._table_pages.items()}

    def _build(self, name: tuple, lower: Callable, report: Callable[[str, float], None]) -> None:
        began = time.perf_counter()
        self._compiled[name] = lower().compile()
        *words, level = name
        extras = [word for word, on in zip(("shaped", "logprobs", "prompt"), _on(level)) if on]
        label = " ".join([*map(str, words), *extras])
        self.compile_s[label] = time.perf_counter() - began
        report(label, self.compile_s[label])


def _serves(level: Level, want: Level) -> bool:
    return all(has >= need for has, need in zip(level, want))


def _on(level: Level) -> tuple[bool, bool, bool]:
    return level.shaped, level.top >= 0, level.prompt


def _shapes(tree) -> list:
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]
