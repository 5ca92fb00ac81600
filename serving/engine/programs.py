"""The compiled programs: one executable per shape and feature set, built ahead of time.

A call that was not compiled at start-up is an error, never a silent compilation.

Axes: R requests of a call, C tokens of a chunk.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixattn.cache import Kind, Paged
from mixattn.model import Transformer
from mixattn.sample import SamplingParams
from serving.config import STOP_IDS, EngineConfig
from serving.engine.device_state import (
    PLAIN,
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SlotRows,
    StepOutput,
)
from serving.engine.logits import ALL_ALLOWED, PenaltyRows
from serving.engine.program_cache import ProgramCache
from serving.engine.stacks import Compiled, Name, ProgramSpec, Stack, make_stack
from serving.request import Sampling


class Programs:
    """Prefill for each (requests, chunk) bucket and decode for each number of rows, per feature set.

    Args:
      buckets: (R, C) pairs, C at most the chunk size; one of the largest C must exist.
      decode_rows: row counts of smaller decode programs beside the one of every slot.
      feature_sets: what requests may ask for. Those with prompt log-probabilities are compiled for the
        largest prefill shape alone.
      layers_per_program: see `EngineConfig`.
      stack: how the layers run; None = as `layers_per_program` says.
    """

    MAX_PROGRAMS = 64  # more than this is a configuration mistake, not a workload
    PREFILLS, DECODES = 1, 1  # programs for each shape

    def __init__(
        self,
        model: Transformer,
        cache: Paged,
        *,
        slots: int,
        buckets: Sequence[tuple[int, int]],
        max_steps: int,
        decode_rows: Sequence[int] = (),
        feature_sets: Sequence[SamplingFeatures] = (PLAIN,),
        layers_per_program: int = 0,
        stack: Stack | None = None,
    ):
        self.decode_rows = sorted({slots, *(r for r in decode_rows if r < slots)})
        self.stack = make_stack(model, layers_per_program) if stack is None else stack
        self.buckets = sorted(buckets, key=lambda rc: (rc[0] * rc[1], rc))
        decodes = {features._replace(prompt=False) for features in feature_sets}
        self.slots, self.max_steps, self.feature_sets = slots, max_steps, sorted(feature_sets)
        asked = self.PREFILLS * sum(len(self._shapes_of(f)) for f in feature_sets)
        asked += self.DECODES * len(self.decode_rows) * len(decodes)
        if asked > self.MAX_PROGRAMS:
            raise ValueError(f"{asked} programs asked for; at most {self.MAX_PROGRAMS} are compiled")
        self.vocab = model.config.vocab_size
        self.compile_s: dict[str, float] = {}
        self._table_pages = {kind: table.shape[1] for kind, table in cache.tables.items()}
        # Tables and row counts come with every call; what stays in the state are the pools.
        nothing = jnp.zeros(0, jnp.int32)
        self._cache = dataclasses.replace(cache, tables={}, start_B=nothing, count_B=nothing)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def fresh_state(self) -> DeviceState:
        """An empty state: zeroed pools (a NaN in a masked place would leak through 0 * NaN), empty rows."""
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._cache)
        penalties = any(features.penalties for features in self.feature_sets)
        return DeviceState(cache, SlotRows.empty(self.slots, self.vocab if penalties else 0))

    def bucket(self, requests: int, chunk_tok: int, features: SamplingFeatures = PLAIN) -> tuple[int, int]:
        """The smallest compiled prefill shape that holds `requests` chunks of up to `chunk_tok` tokens.

        Raises:
          ValueError: none does.
        """
        for R, C in self._shapes_of(features):
            if requests <= R and chunk_tok <= C:
                return R, C
        raise ValueError(f"no prefill program for {requests} chunks of {chunk_tok}; there are {self.buckets}")

    def features(self, asked: Iterable[Sampling], *, prompt: bool, grammar: bool = False) -> SamplingFeatures:
        """The smallest compiled feature set that serves all of `asked`.

        Args:
          grammar: whether one of them is under a grammar.

        Raises:
          ValueError: none does.
        """
        if len(self.feature_sets) == 1:
            return self.feature_sets[0]
        want = PLAIN
        for sampling in asked:
            whole = prompt and sampling.prompt_logprobs is not None
            top = sampling.top if prompt or sampling.logprobs is not None else -1
            want = SamplingFeatures(
                want.penalties or sampling.has_penalties, max(want.top, top), want.prompt or whole, grammar
            )
        for features in self.feature_sets:
            if _serves(features, want):
                return features
        raise ValueError(f"no program serves {want}; there are {self.feature_sets}")

    @property
    def compiled(self) -> Compiled:
        """The programs by name, for a runner that calls its stack itself."""
        return self._compiled

    def rows_for(self, live: int) -> int:
        """Rows of the smallest compiled decode that `live` requests fit in."""
        return next(r for r in self.decode_rows if live <= r)

    def compile(
        self,
        report: Callable[[str, float], None] = lambda name, seconds: None,
        cache: ProgramCache | None = None,
    ) -> None:
        """Compiles all programs, on all cores, or loads them from `cache`.

        Args:
          report: called with each program's name and seconds.
        """
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(count) as cores:
            building = [(name, *self._build(cores, spec, cache)) for name, spec in self.stack.listing(self)]
            for name, began_s, built in building:
                self._compiled[name], ended_s = built.result()
                label = self._label(name)
                self.compile_s[label] = ended_s - began_s
                report(label, self.compile_s[label])

    def _build(
        self, cores: Executor, spec: ProgramSpec, cache: ProgramCache | None
    ) -> tuple[float, Future[tuple[Any, float]]]:
        """Traces one program here and starts to compile it on any core; or loads it there, untraced."""
        began_s = time.perf_counter()
        if cache is None:
            lowered = spec.lower()
            return began_s, cores.submit(lambda: (lowered.compile(), time.perf_counter()))
        description = f"{self.stack.config}\n{spec.describe()}"
        found = cache.load_or_compile
        return began_s, cores.submit(
            lambda: (found(description, lambda: spec.lower().compile()), time.perf_counter())
        )

    def _label(self, name: Name) -> str:
        """A program's name for people: segments by number, features by the words that are on."""
        words: list[str] = []
        for part in name:
            if isinstance(part, SamplingFeatures):
                words += [w for w, on in zip(("penalties", "logprobs", "prompt", "grammar"), _on(part)) if on]
            else:
                words.append(str(part))
        return " ".join(words)

    # ---- the batches to compile for (`serving.engine.stacks.Shapes`) ----

    def state(self) -> DeviceState:
        return jax.eval_shape(self.fresh_state)

    def decodes(self) -> Iterator[tuple[DecodeBatch, SamplingFeatures]]:
        for features in sorted({features._replace(prompt=False) for features in self.feature_sets}):
            for R in reversed(self.decode_rows):
                yield self.blank_decode(R, features), features

    def prefills(self) -> Iterator[tuple[PrefillBatch, SamplingFeatures]]:
        for features in self.feature_sets:
            for R, C in reversed(self._shapes_of(features)):
                yield self.blank_prefill(R, C, features), features

    def borrow(self, other: "Programs") -> None:
        """Shares the compiled programs of an engine with the same model and pools, instead of compiling.

        Raises:
          ValueError: they do not cover what these must do.
        """
        if self.stack.identity() != other.stack.identity():
            raise ValueError("programs to share are those of another model")
        for name in ("slots", "decode_rows", "_table_pages"):
            if (mine := getattr(self, name)) != (theirs := getattr(other, name)):
                raise ValueError(f"programs to share have {name} {theirs}, this engine needs {mine}")
        if (mine := _shapes(self._cache)) != (theirs := _shapes(other._cache)):
            raise ValueError(f"programs to share have pools {theirs}, this engine needs {mine}")
        if not self._is_covered_by(other):
            mine, theirs = (f"{p.buckets}, {p.max_steps} steps, {p.feature_sets}" for p in (self, other))
            raise ValueError(f"programs to share are {theirs}; this engine needs {mine}")
        for name in ("buckets", "max_steps", "feature_sets", "_compiled", "compile_s"):
            setattr(self, name, getattr(other, name))

    def _is_covered_by(self, other: "Programs") -> bool:
        rows, chunk = (max(sizes) for sizes in zip(*self.buckets))
        return (
            self.max_steps <= other.max_steps
            and any(rows <= R and chunk <= C for R, C in other.buckets)
            and all(
                any(_serves(has, features) for has in other.feature_sets) for features in self.feature_sets
            )
        )

    def prefill(
        self, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        return self.stack.prefill(self._compiled, state, batch, features)

    def decode(
        self, state: DeviceState, batch: DecodeBatch, steps: int, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        return self.stack.decode(self._compiled, state, batch, steps, features)

    def blank_decode(self, rows: int, features: SamplingFeatures = PLAIN) -> DecodeBatch:
        """A batch of padding rows."""
        nowhere, left_R = np.full(rows, self.slots, np.int32), np.zeros(rows, np.int32)
        return DecodeBatch(self._blank_tables(rows), nowhere, left_R, self.blank_masks(rows, features))

    def blank_masks(self, rows: int, features: SamplingFeatures) -> np.ndarray | None:
        """Masks that forbid nothing; None where the features know no grammar."""
        words = -(-self.vocab // 32)
        return np.full((rows, words), ALL_ALLOWED, np.uint32) if features.grammar else None

    def blank_prefill(self, R: int, C: int, features: SamplingFeatures) -> PrefillBatch:
        """A batch of padding, to be filled in."""
        return PrefillBatch(
            tokens_RC=np.zeros((R, C), np.int32),
            start_R=np.zeros(R, np.int32),
            count_R=np.zeros(R, np.int32),
            target_RC=np.zeros((R, C), np.int32),
            tables=self._blank_tables(R),
            slot_R=np.full(R, self.slots, np.int32),
            known_R=np.full(R, -1, np.int32),
            sampling_R=SamplingParams.greedy(R, np),
            stop_RE=np.full((R, STOP_IDS), -1, np.int32),
            min_end_R=np.zeros(R, np.int32),
            logprobs_R=np.zeros(R, bool),
            penalties=PenaltyRows.none(R, self.vocab, np) if features.penalties else None,
            allowed_RW=self.blank_masks(R, features),
        )

    def _shapes_of(self, features: SamplingFeatures) -> Sequence[tuple[int, int]]:
        """The prefill shapes compiled for a feature set."""
        return self.buckets[-1:] if features.prompt else self.buckets

    def _blank_tables(self, rows: int) -> dict[Kind, np.ndarray]:
        return {kind: np.zeros((rows, pages), np.int32) for kind, pages in self._table_pages.items()}


def _serves(features: SamplingFeatures, want: SamplingFeatures) -> bool:
    return all(has >= need for has, need in zip(features, want))


def _on(features: SamplingFeatures) -> tuple[bool, bool, bool, bool]:
    return features.penalties, features.top >= 0, features.prompt, features.grammar


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]


def chunk_sizes(config: EngineConfig) -> list[int]:
    """Prompt tokens per request that prefill programs take: the configured ones, or 16, 64, 256 and so on."""
    chunk = config.limits.chunk_tok
    return sorted({chunk, *(config.chunk_sizes or (16 * 4**i for i in range(8) if 16 * 4**i < chunk))})


def feature_sets(config: EngineConfig, vocab: int) -> list[SamplingFeatures]:
    """What programs are compiled to do: every extra, and every extra with prompt log-probabilities."""
    rich = SamplingFeatures(config.penalties, min(config.logprobs, vocab), grammar=config.grammar)
    return [rich, rich._replace(prompt=True)] if config.prompt_logprobs else [rich]
