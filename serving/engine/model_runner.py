"""Between a plan and the programs: host arrays out, tokens of each request back.

The page tables handed to a program are copies: the host goes on changing its own while the program runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mixattn.cache import Kind
from serving.engine.logits import Logprobs
from serving.engine.output import Stream
from serving.engine.plan import Chunk, Entry, Plan, Produced
from serving.engine.programs import Programs
from serving.engine.steps import NOT_FINITE, DecodeBatch, Drawn, PrefillBatch, State
from serving.kvcache.tokens import Ids
from serving.request import Logprob, RequestId


@dataclass(frozen=True)
class Flight:
    """A step under way: what it does, and its programs' answers, not waited for."""

    plan: Plan
    batches: Sequence[Sequence[Chunk]]
    answers: Sequence[Drawn]

    def wait(self) -> "Flight":
        """The same with answers as numpy arrays."""
        return Flight(self.plan, self.batches, [jax.tree.map(np.asarray, a) for a in self.answers])


class Exchange:
    """Runs plans.

    Args:
      tables: by kind, the page tables, changed by whoever owns them.
      streams: the live requests, changed likewise.
    """

    def __init__(
        self,
        programs: Programs,
        tables: Mapping[Kind, np.ndarray],
        streams: Mapping[RequestId, Stream],
        prefill_rows: int,
    ):
        self._programs, self._tables, self._streams, self._rows = programs, tables, streams, prefill_rows

    def launch(self, state: State, plan: Plan) -> tuple[State, Flight]:
        """Starts the plan's programs."""
        answers = []
        batches = [plan.chunks[i : i + self._rows] for i in range(0, len(plan.chunks), self._rows)]
        for chunks in batches:
            level = self._programs.level((self._sampling(c.entry) for c in chunks), prompt=True)
            state, drawn = self._programs.prefill(state, self._batch(chunks, level), level)
            answers.append(drawn)
        if plan.decode:
            level = self._programs.level(map(self._sampling, plan.decode), prompt=False)
            batch = self._rows_of(plan)
            state, drawn = self._programs.decode(state, batch, plan.steps, level)
            answers.append(drawn)
        return state, Flight(plan, batches, answers)

    def read(self, flight: Flight) -> dict[RequestId, Produced]:
        """What the step produced, of requests that have not ended meanwhile. `flight` has been waited for."""
        produced = {}
        for chunks, drawn in zip(flight.batches, flight.answers):
            tokens_R = drawn.token[:, None].tolist()
            for r, chunk in enumerate(chunks):
                if chunk.entry.holding is not None:
                    self._note_prompt(chunk, drawn.prompt, r)
                    if chunk.samples or tokens_R[r] == [NOT_FINITE]:
                        lp = drawn.logprobs and Logprobs(*(x[r, None] for x in drawn.logprobs))
                        produced[chunk.entry.ask.id] = self._judge(chunk.entry, tokens_R[r], lp)
        if flight.plan.decode:
            drawn = flight.answers[-1]
            tokens_R, every = drawn.token.T.tolist(), self._programs.slots == drawn.token.shape[-1]
            for r, entry in enumerate(flight.plan.decode):
                if entry.holding is not None:
                    row = entry.slot if every else r
                    lp = drawn.logprobs and Logprobs(*(x[:, row] for x in drawn.logprobs))
                    produced[entry.ask.id] = self._judge(entry, tokens_R[row], lp)
        return produced

    # ---- inside ----

    def _sampling(self, entry: Entry):
        return self._streams[entry.ask.id].sampling

    def _rows_of(self, plan: Plan) -> DecodeBatch:
        """The plan's decoding rows: in their own slots if all slots take part, else one behind the other."""
        R = self._programs.rows_for(len(plan.decode))
        if self._programs.slots == R:
            tables = {kind: table.copy() for kind, table in self._tables.items()}
            batch = DecodeBatch(tables, np.arange(R, dtype=np.int32), np.zeros(R, np.int32))
            for entry in plan.decode:
                batch.left_R[entry.slot] = min(plan.steps, entry.left_tok)
            return batch
        batch = self._programs.blank_decode(R)
        for r, entry in enumerate(plan.decode):
            batch.slot_R[r], batch.left_R[r] = entry.slot, min(plan.steps, entry.left_tok)
            for kind, table in self._tables.items():
                batch.tables[kind][r] = table[entry.slot]
        return batch

    def _batch(self, chunks: Sequence[Chunk], level) -> PrefillBatch:
        shape = self._programs.bucket(len(chunks), max(c.end - c.start for c in chunks))
        batch = self._programs.blank_prefill(*shape, level)
        for r, chunk in enumerate(chunks):
            entry, count = chunk.entry, chunk.end - chunk.start
            tokens = entry.all_tokens
            assert isinstance(tokens, Ids)
            batch.tokens_RC[r, :count] = tokens.ids[chunk.start : chunk.end]
            behind = tokens.ids[chunk.start + 1 : chunk.end + 1]
            batch.target_RC[r, : len(behind)] = behind
            batch.start_R[r], batch.count_R[r] = chunk.start, count
            for kind, table in self._tables.items():
                batch.tables[kind][r] = table[entry.slot]
            if chunk.last:
                self._install(batch, r, entry)
        return batch

    def _install(self, batch: PrefillBatch, r: int, entry: Entry) -> None:
        stream = self._streams[entry.ask.id]
        sampling = stream.sampling
        batch.slot_R[r] = entry.slot
        if entry.output_ids:
            batch.known_R[r] = entry.output_ids[-1]
        batch.knobs_R.set(
            r, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, stream.seed
        )
        stops = sorted(stream.stops)
        batch.stop_RE[r, : len(stops)] = stops
        batch.least_R[r] = entry.ask.prompt_tok + sampling.min_tokens
        if batch.shaping is not None:
            batch.shaping.set(r, sampling, stream.request.prompt_ids, entry.output_ids)

    def _note_prompt(self, chunk: Chunk, prompt: Logprobs | None, r: int) -> None:
        stream = self._streams[chunk.entry.ask.id]
        k = stream.sampling.prompt_logprobs
        if prompt is not None and k is not None:
            ids = stream.request.prompt_ids
            for position in range(chunk.start, min(chunk.end, len(ids) - 1)):
                at = r, position - chunk.start
                stream.prompt_logprobs[position + 1] = prompt.at(at, ids[position + 1], k)

    def _judge(self, entry: Entry, ids: list[int], logprobs: Logprobs | None) -> Produced:
        """`ids`: -1 where a row that had ended produced none."""
        stream = self._streams[entry.ask.id]
        if ids[-1] == -1:
            ids = ids[: ids.index(-1)]
        broken = bool(ids) and ids[-1] == NOT_FINITE
        if broken:
            ids = ids[:-1]
        told: list[Logprob] = []
        k = stream.sampling.logprobs
        if logprobs is not None and k is not None:
            told = [logprobs.at(i, id, k) for i, id in enumerate(ids)]
        return stream.take(ids, broken, told)
