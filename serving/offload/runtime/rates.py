"""Measures this machine with the model's own shapes: reading its experts, and computing with them. Seconds.

Results are kept in the work folder and used again for the same shapes, dtype and way of reading.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mixattn.tools import files
from serving.offload.machine_plan import MachineRates
from serving.offload.runtime import programs
from serving.offload.runtime.checkpoint import MixtureCheckpoint
from serving.offload.runtime.sources import ExpertSource, make_slots

ROUNDS = 5
FEW, MANY = 8, 128  # rows


def rates(checkpoint: MixtureCheckpoint, source: ExpertSource, kept: Path | None) -> MachineRates:
    """The machine's rates; from `kept` if it has them for these shapes and this way of reading."""
    config = checkpoint.config
    shape = [
        config.d_model,
        config.d_ff,
        config.dtype,
        checkpoint.transposed,
        checkpoint.quantize,
        source.way,
    ]
    if kept is not None and kept.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # what it does not hold is measured again
            found = json.loads(kept.read_text())
            if found["shape"] == shape:
                return MachineRates(**found["rates"])
    measured = measure(checkpoint, source)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(kept, {"shape": shape, "rates": dataclasses.asdict(measured)})
    return measured


def measure(checkpoint: MixtureCheckpoint, source: ExpertSource) -> MachineRates:
    """Medians of a few reads of different experts, and of one expert's program with few and many rows."""
    slots, pages = make_slots(2, checkpoint, source), sorted(checkpoint.pages)
    reads = iter(pages[i % len(pages)] for i in range(ROUNDS + 1))
    read_s = _median(lambda: slots.read(0, *next(reads)))
    arrays = slots.read(1, *pages[0])
    few_s, many_s = (_compute_s(checkpoint, arrays, rows) for rows in (FEW, MANY))
    row_s = max((many_s - few_s) / (MANY - FEW), 1e-9)
    expert_s = max(few_s - FEW * row_s, 1e-7)
    return MachineRates(source.moved_bytes(checkpoint.pages[pages[0]]) / read_s, expert_s, row_s)


def _compute_s(checkpoint: MixtureCheckpoint, arrays: tuple[jax.Array, ...], rows: int) -> float:
    config = checkpoint.config
    x_MD = jnp.asarray(np.random.default_rng(0).normal(size=(2 * rows, config.d_model)), config.dtype)
    none, size = np.int32(0), np.int32(rows)

    def once() -> None:
        y_MD = jnp.zeros_like(x_MD)
        programs.expert(
            config, checkpoint.transposed, rows, y_MD, x_MD, none, size, arrays
        ).block_until_ready()

    return _median(once)


def _median(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
