"""Runs plans: turns a plan into arrays for the programs, and their outputs into results per request.

The page tables handed to a program are copies: the host changes its own while the program runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mixattn.cache import Kind
from serving.engine.device_state import (
    NOT_FINITE,
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    StepOutput,
)
from serving.engine.logits import Logprobs
from serving.engine.output import OutputStream
from serving.engine.plan import PrefillChunk, RequestState, StepPlan, StepResult
from serving.engine.programs import Programs
from serving.kvcache.tokens import TokenIds
from serving.request import Logprob, RequestId


@dataclass(frozen=True)
class InFlightStep:
    """A started step: its plan, and its programs' outputs, which may not be computed yet.

    Attributes:
      batches, decodes: chunks of each prefill call, then rows of each decode call, in the order of `outputs`.
    """

    plan: StepPlan
    batches: Sequence[Sequence[PrefillChunk]]
    outputs: Sequence[StepOutput]
    decodes: Sequence[Sequence[RequestState]]

    def wait(self) -> "InFlightStep":
        """The same with outputs as numpy arrays."""
        outputs = [jax.tree.map(np.asarray, a) for a in self.outputs]
        return InFlightStep(self.plan, self.batches, outputs, self.decodes)


class RequestFault(Exception):
    """The host could not turn one request into arrays, for example for want of a valid seed.

    Attributes:
      name: what its output is scheduled under.
      why: the exception.
    """

    def __init__(self, name: RequestId, why: Exception) -> None:
        super().__init__(f"{name!a}: {why!r}")
        self.name, self.why = name, why


class ModelRunner:
    """Runs plans.

    Args:
      tables: by kind, the page tables; their owner changes them.
      streams: the live requests; their owner changes them.
    """

    def __init__(
        self,
        programs: Programs,
        tables: Mapping[Kind, np.ndarray],
        streams: Mapping[RequestId, OutputStream],
        prefill_rows: int,
    ):
        self._programs, self._tables, self._streams, self._rows = programs, tables, streams, prefill_rows

    def launch(self, state: DeviceState, plan: StepPlan) -> tuple[DeviceState, InFlightStep]:
        """Starts the plan's programs.

        Raises:
          RequestFault: a request cannot be prepared; nothing was started then.
        """
        outputs = []
        batches = [plan.chunks[i : i + self._rows] for i in range(0, len(plan.chunks), self._rows)]
        inputs = []
        for chunks in batches:
            features = self._features([c.req for c in chunks], prompt=True)
            inputs.append((self._batch(chunks, features), features))
        for prefill, features in inputs:
            state, drawn = self._programs.prefill(state, prefill, features)
            outputs.append(drawn)
        if plan.decode:
            features = self._features(plan.decode, prompt=False)
            batch = self._rows_of(plan.decode, plan.steps, features)
            state, drawn = self._programs.decode(state, batch, plan.steps, features)
            outputs.append(drawn)
        return state, InFlightStep(plan, batches, outputs, [plan.decode] if plan.decode else [])

    def read(self, in_flight: InFlightStep) -> dict[RequestId, StepResult]:
        """The results of requests that are still live; `in_flight` must have been waited for."""
        produced = {}
        for chunks, drawn in zip(in_flight.batches, in_flight.outputs):
            tokens_R = drawn.token[:, None].tolist()
            for r, chunk in enumerate(chunks):
                if chunk.req.kv is not None:
                    self._note_prompt(chunk, drawn.prompt, r)
                    if chunk.samples or tokens_R[r] == [NOT_FINITE]:
                        lp = drawn.logprobs and Logprobs(*(x[r, None] for x in drawn.logprobs))
                        produced[chunk.req.info.id] = self._result_of(chunk.req, tokens_R[r], lp)
        for rows, drawn in zip(in_flight.decodes, in_flight.outputs[len(in_flight.batches) :]):
            tokens_R, every = drawn.token.T.tolist(), self._programs.slots == drawn.token.shape[-1]
            for r, req in enumerate(rows):
                if req.kv is not None:
                    row = req.slot if every else r
                    lp = drawn.logprobs and Logprobs(*(x[:, row] for x in drawn.logprobs))
                    produced[req.info.id] = self._result_of(req, tokens_R[row], lp)
        return produced

    # ---- inside ----

    def _features(self, rows: Sequence[RequestState], *, prompt: bool) -> SamplingFeatures:
        streams = [self._streams[req.info.id] for req in rows]
        grammar = any(stream.grammar is not None for stream in streams)
        return self._programs.features((s.sampling for s in streams), prompt=prompt, grammar=grammar)

    def _rows_of(self, rows: Sequence[RequestState], steps: int, features: SamplingFeatures) -> DecodeBatch:
        """The plan's decode rows: in their own slots if all slots take part, else packed."""
        R = self._programs.rows_for(len(rows))
        if self._programs.slots == R:
            tables = {kind: table.copy() for kind, table in self._tables.items()}
            masks_RW = self._programs.blank_masks(R, features)
            batch = DecodeBatch(tables, np.arange(R, dtype=np.int32), np.zeros(R, np.int32), masks_RW)
            for req in rows:
                batch.left_R[req.slot] = min(steps, req.steps_left)
                self._restrict(batch, req.slot, req)
            return batch
        batch = self._programs.blank_decode(R, features)
        for r, req in enumerate(rows):
            batch.slot_R[r], batch.left_R[r] = req.slot, min(steps, req.steps_left)
            self._restrict(batch, r, req)
            for kind, table in self._tables.items():
                batch.tables[kind][r] = table[req.slot]
        return batch

    def _restrict(self, batch: DecodeBatch, r: int, req: RequestState) -> None:
        """A row under a grammar: its mask, which holds for one token."""
        grammar = self._streams[req.info.id].grammar
        if grammar is not None:
            grammar.fill(batch.allowed_RW[r])
            batch.left_R[r] = 1

    def _batch(self, chunks: Sequence[PrefillChunk], features: SamplingFeatures) -> PrefillBatch:
        shape = self._programs.bucket(len(chunks), max(c.end - c.start for c in chunks), features)
        batch = self._programs.blank_prefill(*shape, features)
        for r, chunk in enumerate(chunks):
            req, count = chunk.req, chunk.end - chunk.start
            tokens = req.all_tokens
            assert isinstance(tokens, TokenIds)
            batch.tokens_RC[r, :count] = tokens.ids[chunk.start : chunk.end]
            behind = tokens.ids[chunk.start + 1 : chunk.end + 1]
            batch.target_RC[r, : len(behind)] = behind
            batch.start_R[r], batch.count_R[r] = chunk.start, count
            for kind, table in self._tables.items():
                batch.tables[kind][r] = table[req.slot]
            if chunk.last:
                try:
                    self._install(batch, r, req)
                except Exception as why:
                    raise RequestFault(req.info.id, why) from why
        return batch

    def _install(self, batch: PrefillBatch, r: int, req: RequestState) -> None:
        stream = self._streams[req.info.id]
        sampling = stream.sampling
        batch.slot_R[r] = req.slot
        # Later outputs of a request that goes on in a slab come one by one, in its decode steps.
        known = req.output_ids[:1] if req.slab is not None else req.output_ids
        known = known or list(req.forced_ids[:1])
        if known:
            batch.known_R[r] = known[-1]
        batch.sampling_R.set(
            r, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, stream.seed
        )
        stops = sorted(stream.stops)
        batch.stop_RE[r, : len(stops)] = stops
        batch.min_end_R[r] = req.info.prompt_tok + sampling.min_tokens
        batch.logprobs_R[r] = sampling.logprobs is not None
        if stream.grammar is not None and not req.output_ids:
            stream.grammar.fill(batch.allowed_RW[r])
        if batch.penalties is not None:
            batch.penalties.set(r, sampling, stream.request.prompt_ids, known)

    def _note_prompt(self, chunk: PrefillChunk, prompt: Logprobs | None, r: int) -> None:
        stream = self._streams[chunk.req.info.id]
        k = stream.sampling.prompt_logprobs
        if prompt is not None and k is not None:
            ids = stream.request.prompt_ids
            for position in range(chunk.start, min(chunk.end, len(ids) - 1)):
                at = r, position - chunk.start
                stream.prompt_logprobs[position + 1] = prompt.at(at, ids[position + 1], k)

    def _result_of(self, req: RequestState, ids: list[int], logprobs: Logprobs | None) -> StepResult:
        """Ends `ids` at the first -1, which marks a row that had ended."""
        stream = self._streams[req.info.id]
        if ids[-1] == -1:
            ids = ids[: ids.index(-1)]
        broken = bool(ids) and ids[-1] == NOT_FINITE
        if broken:
            ids = ids[:-1]
        replayed = min(len(ids), req.replay_tok) if req.slab is not None and not req.prefilling else 0
        told: list[Logprob] = []
        k = stream.sampling.logprobs
        if logprobs is not None and k is not None:
            told = [logprobs.at(i, id, k) for i, id in enumerate(ids) if i >= replayed]
        result = stream.take(ids[replayed:], broken, told)
        result.replayed = replayed
        return result
