"""Builds an engine for a checkpoint from a plan: sources, buffers, runner, stack."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from serving.config import EngineConfig, Limits
from serving.engine.kv_layout import KVLayout
from serving.engine.program_cache import ProgramCache
from serving.offload.machine_plan import MachinePlan, MachinePlanner, MachineRates, MachineWorkload, spread
from serving.offload.runtime.buffers import ExpertSlots, LayerBuffers, ResidentExperts
from serving.offload.runtime.cache import ExpertCache
from serving.offload.runtime.caching import CacheRunner
from serving.offload.runtime.checkpoint import MixtureCheckpoint, load_rest
from serving.offload.runtime.compile_apart import CompilesApart
from serving.offload.runtime.engine import OffloadEngine
from serving.offload.runtime.sources import ExpertSource, make_slots
from serving.offload.runtime.stack import OffloadStack
from serving.offload.runtime.streaming import StreamRunner

PAGE_TOK = 16
CHUNK_TOK, CHUNKS = 64, 4  # tokens of a prompt in one micro-batch, and such micro-batches in a pass


def engine_config(
    checkpoint: MixtureCheckpoint,
    rows: int,
    parts: int,
    longest_tok: int,
    base: EngineConfig | None = None,
) -> EngineConfig:
    """An engine for `parts` micro-batches of `rows` rows; what `base` says of policies and sampling stays."""
    chunk = min(CHUNK_TOK, longest_tok)
    return dataclasses.replace(
        base or EngineConfig(),
        max_slots=rows * parts,
        page_size=PAGE_TOK,
        num_pages=0,
        window_pages=0,
        max_request_tok=-(-longest_tok // PAGE_TOK) * PAGE_TOK,
        limits=Limits(chunk_tok=chunk, step_tok=CHUNKS * chunk, decode_steps=(1,)),
        prefill_rows=(1,),
        chunk_sizes=(chunk,),
        decode_rows=tuple(rows * n for n in range(1, parts)),
        reuse=False,
        overlap=False,
    )


def kv_bytes(checkpoint: MixtureCheckpoint, longest_tok: int) -> Callable[[int], int]:
    """Rows that run at once -> bytes of the K/V pools that the engine allocates."""

    def nbytes(rows: int) -> int:
        config = engine_config(checkpoint, rows, 1, longest_tok)
        return sum(KVLayout.of(checkpoint.config, config).cache(checkpoint.config, config).nbytes().values())

    return nbytes


def planner(
    checkpoint: MixtureCheckpoint,
    rates: MachineRates,
    workload: MachineWorkload,
    memory_bytes: float,
    source: ExpertSource | None = None,
) -> MachinePlanner:
    """Plans for a checkpoint; `source`: what an expert moves, the bytes of the file by default."""
    page = next(iter(checkpoint.pages.values()))
    return MachinePlanner(
        checkpoint.config,
        rates,
        workload,
        memory_bytes,
        checkpoint.rest_bytes,
        checkpoint.slot_bytes,
        kv_bytes(checkpoint, workload.longest_tok),
        staging_bytes=checkpoint.staging_bytes,
        moved_bytes=page.file_bytes if source is None else source.moved_bytes(page),
    )


@dataclass
class Offloaded:
    """An engine and the parts that tell what it did."""

    engine: OffloadEngine
    runner: StreamRunner | CacheRunner
    slots: ExpertSlots
    plan: MachinePlan


def build(
    checkpoint: MixtureCheckpoint,
    source: ExpertSource,
    plan: MachinePlan,
    config: EngineConfig,
    *,
    cache_policy: str = "lru",
    prefetch: bool = False,
    program_cache: ProgramCache | None = None,
    **options: Any,
) -> Offloaded:
    """The engine that a plan describes; `options` are the engine's.

    Programs that are not in `program_cache` are compiled by another process, unless a device has memory of
    its own, which two processes would have to share.

    Raises:
      ValueError: the checkpoint or the configuration cannot be served.
      OSError: reading the experts that stay failed.
    """
    model = load_rest(checkpoint)
    if program_cache is not None and source.devices is None:
        program_cache = CompilesApart(program_cache.folder, checkpoint, plan.rows, config, guesses=prefetch)
    runner, slots = _runner(checkpoint, source, plan, cache_policy, prefetch)
    stack = OffloadStack(
        model, checkpoint, rows=plan.rows, runner=runner, devices=source.devices, guesses=prefetch
    )
    engine = OffloadEngine(
        model, stack, config, check=source.reader.check_unchanged, program_cache=program_cache, **options
    )
    return Offloaded(engine, runner, slots, plan)


def _runner(
    checkpoint: MixtureCheckpoint, source: ExpertSource, plan: MachinePlan, cache_policy: str, prefetch: bool
) -> tuple[StreamRunner | CacheRunner, ExpertSlots]:
    config, streams = checkpoint.config, checkpoint.streams
    if plan.mode == "cache":
        slots = make_slots(plan.slots, checkpoint, source)
        cache = ExpertCache(plan.slots, cache_policy)
        return CacheRunner(
            slots,
            cache,
            n_layers=config.n_layers,
            streams=streams,
            n_experts=config.n_experts,
            schedule=plan.schedule,
            prefetch=prefetch,
        ), slots
    stay = spread(plan.resident, streams, config.n_experts)
    resident = ResidentExperts(stay, make_slots(len(stay), checkpoint, source))
    read = _streamed(streams, config.n_experts, set(stay))
    slots = make_slots(2 * max(map(len, read.values())), checkpoint, source)
    buffers = LayerBuffers(read, slots, config.n_layers)
    return StreamRunner(
        buffers, resident.arrays, n_layers=config.n_layers, schedule=plan.schedule, keep=resident
    ), slots


def _streamed(streams: Iterable[int], n_experts: int, stay: set[tuple[int, int]]) -> dict[int, list[int]]:
    return {i: [e for e in range(n_experts) if (i, e) not in stay] for i in streams}
