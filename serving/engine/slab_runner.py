"""Runs plans of an engine that evicts: prompts move to slabs first, and rows in slabs decode in a call of
their own."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixattn.cache import FULL, Kind
from serving.engine.device_state import (
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SettleBatch,
)
from serving.engine.model_runner import InFlightStep, ModelRunner
from serving.engine.output import OutputStream
from serving.engine.plan import PlannedSettle, PrefillChunk, RequestState, StepPlan
from serving.engine.programs import Programs
from serving.engine.slab_programs import SlabPrograms
from serving.request import RequestId


class SlabRunner(ModelRunner):
    """See the module."""

    def __init__(
        self,
        programs: Programs,
        tables: Mapping[Kind, np.ndarray],
        streams: Mapping[RequestId, OutputStream],
        prefill_rows: int,
    ):
        super().__init__(programs, tables, streams, prefill_rows)
        assert isinstance(programs, SlabPrograms)
        self._slab_programs = programs

    def launch(self, state: DeviceState, plan: StepPlan) -> tuple[DeviceState, InFlightStep]:
        """Starts the plan's programs. Settling comes first: the pages it reads may be others' already.

        Raises:
          RequestFault: a request cannot be prepared; nothing was started then.
        """
        programs, outputs = self._slab_programs, []
        voting, silent = _parted(plan.chunks)
        batches: list[Sequence[PrefillChunk]] = []
        prefills = []
        for chunks, votes in ((voting, True), (silent, False)):
            for i in range(0, len(chunks), self._rows):
                some = chunks[i : i + self._rows]
                features = self._features([c.req for c in some], prompt=True)
                batch = self._batch(some, features)
                prefills.append((self._with_votes(batch, some) if votes else batch, features))
                batches.append(some)
        for settle in plan.settles:
            state = programs.settle(state, self._settle_batch(settle))
        for batch, features in prefills:
            run = programs.prefill if batch.votes is None else programs.prefill_votes
            state, drawn = run(state, batch, features)
            outputs.append(drawn)
        slabs = [req for req in plan.decode if req.slab is not None]
        exact = all(req.slab.exact for req in slabs if req.slab is not None)
        full = [req for req in plan.decode if req.slab is None]
        if slabs:
            features = self._features(slabs, prompt=False)
            rows = self._slab_rows(slabs, plan.steps, features)
            state, drawn = programs.decode_slabs(state, rows, plan.steps, features, exact=exact)
            outputs.append(drawn)
        if full:
            features = self._features(full, prompt=False)
            rows = self._with_known(self._rows_of(full, plan.steps, features), full, plan.steps)
            state, drawn = programs.decode(state, rows, plan.steps, features)
            outputs.append(drawn)
        return state, InFlightStep(plan, batches, outputs, [rows for rows in (slabs, full) if rows])

    # ---- inside ----

    def _slab_rows(self, rows: Sequence[RequestState], steps: int, features: SamplingFeatures) -> DecodeBatch:
        batch = self._rows_of(rows, steps, features)
        tables = {kind: table for kind, table in batch.tables.items() if kind != FULL.name}
        return self._with_known(batch._replace(tables=tables), rows, steps)

    def _with_known(self, batch: DecodeBatch, rows: Sequence[RequestState], steps: int) -> DecodeBatch:
        """The batch with tokens that a row produced before it lost its slab, or that its request gave."""
        known_RN = self._slab_programs.blank_known(len(batch.left_R))
        every = len(batch.left_R) == self._slab_programs.slots
        for r, req in enumerate(rows):
            if req.next_is_known:
                known = req.known_from(req.output_tok - req.replay_tok, steps)
                known_RN[req.slot if every else r, : len(known)] = known
        return batch._replace(known_RN=known_RN)

    def _with_votes(self, batch: PrefillBatch, chunks: Sequence[PrefillChunk]) -> PrefillBatch:
        places = self._slab_programs.blank_votes(len(batch.start_R))
        for r, chunk in enumerate(chunks):
            req = chunk.req
            if req.slab is None or not _votes(chunk):
                continue
            first = places.first_R[r] = req.slab.first_vote(req.info.prompt_tok)
            votes = req.kv.votes if req.kv is not None else None
            assert votes is not None
            begins = chunk.start == votes.hit_tok or chunk.start <= first
            places.from_R[r] = votes.base if begins else votes.row
            places.to_R[r] = votes.row
            if votes.mark_row and chunk.end in votes.marks:
                places.mark_R[r] = votes.mark_row
        return batch._replace(votes=places)

    def _settle_batch(self, settle: PlannedSettle) -> SettleBatch:
        batch, pages, slab = self._slab_programs.blank_settle(), settle.pages, settle.req.slab
        assert slab is not None
        for kind, moves in zip(self._tables, pages.moves):
            if kind in batch.moves and moves:
                batch.moves[kind][:, : len(moves)] = np.array(moves, np.int32).T
        return batch._replace(
            table_P=pages.table.astype(np.int32),
            tokens=np.int32(settle.req.info.prompt_tok),
            slot=np.int32(pages.slot),
            scorer=np.int32(slab.scorer),
            votes_row=np.int32(pages.votes_row),
            cut_O3=np.array(slab.cut, np.int32),
            limits_O3=np.array(slab.limits, np.int32),
        )


def _votes(chunk: PrefillChunk) -> bool:
    """Whether the chunk adds to its request's scores."""
    slab = chunk.req.slab
    return slab is not None and chunk.end > slab.first_vote(chunk.req.info.prompt_tok)


def _parted(chunks: Sequence[PrefillChunk]) -> tuple[list[PrefillChunk], list[PrefillChunk]]:
    """Chunks whose queries vote, and the others."""
    voting = [chunk for chunk in chunks if _votes(chunk)]
    return voting, [chunk for chunk in chunks if not _votes(chunk)]
