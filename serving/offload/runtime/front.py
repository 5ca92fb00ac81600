"""An engine for a checkpoint and an engine's configuration that asks for offloading: what servers build."""

from pathlib import Path
from typing import Any

from serving.config import EngineConfig
from serving.offload.machine_plan import GIB, MachineWorkload
from serving.offload.runtime import build, placement, rates, sources
from serving.offload.runtime.build import Offloaded
from serving.offload.runtime.checkpoint import locate


def open_offloaded(path: str | Path, config: EngineConfig, **options: Any) -> Offloaded:
    """Plans for as many rows as the configuration has slots, and builds the engine.

    Args:
      config: `offload` says how much memory; slots become what fits, limits those of one pass per step.
      options: as `Engine`'s.

    Raises:
      ValueError: the checkpoint is dense or damaged, or the memory too small; says the least that works.
    """
    wanted, checkpoint = config.offload, locate(path, config.offload.quantize)
    source = sources.open_source(checkpoint, devices=placement.accelerator())
    try:
        workload = MachineWorkload(config.max_slots, config.max_request_tok)
        measured = rates.measure(checkpoint, source)
        planner = build.planner(checkpoint, measured, workload, wanted.device_memory_gb * GIB, source)
        plan = planner.best(wanted.mode or None, wanted.schedule or None)  # type: ignore[arg-type]
        fitting = build.engine_config(checkpoint, plan.rows, plan.parts, config.max_request_tok, config)
        return build.build(
            checkpoint,
            source,
            plan,
            fitting,
            cache_policy=wanted.cache_policy,
            prefetch=wanted.prefetch,
            **options,
        )
    except BaseException:
        source.close()
        raise
