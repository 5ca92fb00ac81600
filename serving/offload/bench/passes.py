"""Decode passes of N rows without an engine around them, for measuring: same programs, chosen runner."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mixattn.model import Transformer
from serving.engine.device_state import PLAIN
from serving.engine.kv_layout import KVLayout
from serving.engine.programs import Programs
from serving.offload.lanes import MeasuredPass, thread_of
from serving.offload.runtime.buffers import LayerBuffers, ResidentExperts
from serving.offload.runtime.build import engine_config
from serving.offload.runtime.checkpoint import MixtureCheckpoint, load_rest
from serving.offload.runtime.pieces import Pieces
from serving.offload.runtime.resident import ResidentRunner
from serving.offload.runtime.sources import ExpertSource, make_slots
from serving.offload.runtime.stack import LayerRunner, OffloadStack
from serving.offload.runtime.streaming import StreamRunner

CONTEXT_TOK = 64  # tokens that each row holds


class DecodeBench:
    """N rows of `parts` micro-batches, each with a context of zeros; every pass decodes one token of each."""

    def __init__(
        self, checkpoint: MixtureCheckpoint, rows: int, parts: int, model: Transformer | None = None
    ):
        self.checkpoint, self.rows, self.parts = checkpoint, rows, parts
        self.model = load_rest(checkpoint) if model is None else model
        config = engine_config(checkpoint, rows, parts, CONTEXT_TOK + 32)
        layout = KVLayout.of(checkpoint.config, config)
        self.stack = OffloadStack(self.model, checkpoint, rows=rows, runner=ResidentRunner({}, 0))
        self.programs = Programs(
            self.model,
            layout.cache(checkpoint.config, config),
            slots=rows * parts,
            buckets=[(1, config.limits.chunk_tok)],
            max_steps=1,
            decode_rows=config.decode_rows,
            stack=self.stack,
        )
        self.programs.compile()
        self.state = self.programs.fresh_state()
        self._rng = np.random.default_rng(0)

    def run(self, runner: LayerRunner) -> tuple[float, list[np.ndarray]]:
        """One pass of all layers: its seconds, and the hidden states."""
        slots, pages = self.rows * self.parts, CONTEXT_TOK // 16 + 1
        token_B = np.random.default_rng(1).integers(1, 1000, slots).astype(np.int32)
        rows = dataclasses.replace(
            self.state.rows,
            token_B=jax.numpy.asarray(token_B),
            position_B=jax.numpy.full(slots, CONTEXT_TOK, jax.numpy.int32),
        )
        batch = self.programs.blank_decode(slots, PLAIN)
        batch.slot_R[:], batch.left_R[:] = np.arange(slots), 1
        for table in batch.tables.values():
            table[:, :pages] = 1 + np.arange(slots)[:, None] * table.shape[1] + np.arange(pages)
        pieces = Pieces(
            self.programs.compiled, self.stack.layers, self.stack._params, dict(self.state.cache.pools)
        )
        cuts = [
            jax.tree.map(lambda x, at=at: x[at : at + self.rows], batch) for at in range(0, slots, self.rows)
        ]
        parts = [pieces.start_decode(rows, cut, PLAIN) for cut in cuts]
        jax.block_until_ready([part.x_RTD for part in parts])
        began_s = time.perf_counter()
        runner.run(pieces, parts)
        seconds = time.perf_counter() - began_s
        self.state = dataclasses.replace(
            self.state, cache=dataclasses.replace(self.state.cache, pools=pieces.pools)
        )
        return seconds, [np.asarray(part.x_RTD) for part in parts]


def stream_runner(checkpoint: MixtureCheckpoint, source: ExpertSource, schedule: str) -> StreamRunner:
    """Two layer buffers, no expert that stays."""
    E = checkpoint.config.n_experts
    slots = make_slots(2 * E, checkpoint, source)
    streamed = {i: list(range(E)) for i in checkpoint.streams}
    buffers = LayerBuffers(streamed, slots, checkpoint.config.n_layers)
    return StreamRunner(buffers, {}, n_layers=checkpoint.config.n_layers, schedule=schedule)


def resident_runner(checkpoint: MixtureCheckpoint, source: ExpertSource) -> tuple[ResidentRunner, Any]:
    """All experts in memory, and what owns that memory."""
    pages = sorted(checkpoint.pages)
    held = ResidentExperts(pages, make_slots(len(pages), checkpoint, source))
    return ResidentRunner(held.arrays, checkpoint.config.n_layers), held


def lane_seconds(run: MeasuredPass) -> dict[str, float]:
    """Busy seconds of the reading lane and of the others together."""
    spent = {"read": 0.0, "compute": 0.0}
    for span in run.spans:
        spent["read" if span.task.kind == "weights" else "compute"] += span.end_s - span.start_s
    return spent


def busiest_s(run: MeasuredPass) -> float:
    """Busy seconds of the lane, that is the thread, that works longest."""
    spent: dict[str, float] = {}
    for span in run.spans:
        lane = thread_of(span.task)
        spent[lane] = spent.get(lane, 0.0) + span.end_s - span.start_s
    return max(spent.values())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def interleaved(rounds: int, *works: Callable[[], Any]) -> list[list[Any]]:
    """Each work's results, taken in turns so that the machine's load falls on all alike."""
    found: list[list[Any]] = [[] for _ in works]
    for turn in range(rounds):
        order = range(len(works)) if turn % 2 == 0 else reversed(range(len(works)))
        for which in order:
            found[which].append(works[which]())
    return found


def load_average() -> float:
    return os.getloadavg()[0]
