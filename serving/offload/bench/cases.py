"""What is measured, one function a line of the table; each returns ratios with their spread."""

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from mixattn.spec import ModelConfig
from serving.offload.bench import model as measured_model
from serving.offload.bench.passes import (
    DecodeBench,
    busiest_s,
    interleaved,
    lane_seconds,
    load_average,
    resident_runner,
    spread,
    stream_runner,
)
from serving.offload.lanes import execute
from serving.offload.machine_plan import GIB, MachinePlan, MachineWorkload
from serving.offload.runtime import build, rates, sources
from serving.offload.runtime.buffers import Slots
from serving.offload.runtime.cache import ExpertCache
from serving.offload.runtime.caching import CacheRunner
from serving.offload.runtime.checkpoint import MixtureCheckpoint, load_rest, locate
from serving.offload.schedule import TaskSeconds, emit
from serving.offload.simulate import simulate

type Row = dict[str, Any]


def row(case: str, target: str, values: list[float], **more: Any) -> Row:
    return {
        "case": case,
        "target": target,
        **spread(values),
        "load_average": round(load_average(), 1),
        **more,
    }


def plan_of(checkpoint: MixtureCheckpoint, memory_gb: float, requests: int) -> MachinePlan:
    source = sources.open_source(checkpoint)
    found = rates.measure(checkpoint, source)
    source.close()
    return build.planner(checkpoint, found, MachineWorkload(requests, 96), memory_gb * GIB).best("stream")


def overlap(checkpoint: MixtureCheckpoint, memory_gb: float, rounds: int) -> list[Row]:
    """A pass against its busiest lane, N chosen by the plan; and all lanes against the wall, serial too."""
    plan = plan_of(checkpoint, memory_gb, 512)
    rows: list[Row] = []
    bench = DecodeBench(checkpoint, plan.rows, plan.parts)
    source = sources.open_source(checkpoint)
    runner = stream_runner(checkpoint, source, plan.schedule)
    bench.run(runner)
    ratios = []
    for _ in range(rounds):
        wall_s, _ = bench.run(runner)
        assert runner.measured is not None
        ratios.append(wall_s / busiest_s(runner.measured))  # the first layer was read by the pass before
    note = f"N={plan.rows}x{plan.parts}, {plan.schedule}, chosen by the plan; not throttled"
    rows.append(row("pass / busiest lane", "<= 1.10", ratios, note=note))
    source.close()
    return rows


def balance(checkpoint: MixtureCheckpoint, rounds: int, N: int = 256) -> list[Row]:
    """The reading lane throttled to take as long as computing does: what overlapping is worth then."""
    bench = DecodeBench(checkpoint, N, 1)
    source = sources.open_source(checkpoint)
    resident, held = resident_runner(checkpoint, source)
    bench.run(resident)
    compute_s = float(np.median([bench.run(resident)[0] for _ in range(3)]))
    del resident, held
    source.close()
    total = checkpoint.expert_bytes * len(checkpoint.pages)
    throttle = total / compute_s
    source = sources.open_source(checkpoint, throttle_Bps=throttle)
    overlapped, serial = (stream_runner(checkpoint, source, name) for name in ("s2", "serial"))
    bench.run(overlapped), bench.run(serial)
    together: list[float] = []
    shares: list[float] = []

    def one() -> float:
        wall_s, _ = bench.run(overlapped)
        assert overlapped.measured is not None
        lanes = lane_seconds(overlapped.measured)
        together.append(sum(lanes.values()) / wall_s)
        shares.append(lanes["read"] / lanes["compute"])
        return wall_s

    ours, theirs = interleaved(rounds, one, lambda: bench.run(serial)[0])
    source.close()
    note = f"N={N}, read throttled to {throttle / 2**20:.0f} MiB/s, read/compute {np.median(shares):.2f}"
    return [
        row("(read + compute) / wall at balance", ">= 1.6", together, note=note),
        row("serial / overlapped at balance", ">= 1.5", [b / a for a, b in zip(ours, theirs)], note=note),
    ]


def overhead(checkpoint: MixtureCheckpoint, rounds: int) -> list[Row]:
    """The compute lane while experts stream against the same micro-batches with all experts in memory."""
    found = []
    for N in (32, 128):
        bench = DecodeBench(checkpoint, N, 1)
        source = sources.open_source(checkpoint)
        resident, held = resident_runner(checkpoint, source)
        runner = stream_runner(checkpoint, source, "s2")
        bench.run(resident), bench.run(runner)

        def streamed(bench: DecodeBench = bench, runner: Any = runner) -> float:
            bench.run(runner)
            assert runner.measured is not None
            return lane_seconds(runner.measured)["compute"]

        def still(bench: DecodeBench = bench, resident: Any = resident) -> float:
            return bench.run(resident)[0]

        ours, theirs = interleaved(rounds, streamed, still)
        source.close()
        del held
        ratios = [a / b for a, b in zip(ours, theirs)]
        found.append(row("compute lane / resident", "<= 1.10", ratios, note=f"N={N}, read at full speed"))
    return found


UNIT_S = 0.03


def padded(rounds: int) -> list[Row]:
    """Lanes that sleep for modelled times: what was measured against the simulation, by schedule."""
    u = UNIT_S
    seconds = TaskSeconds(
        pre=u, post=2 * u, offload=u / 2, load=u / 2, host_attention=2 * u, device_attention=u / 2,
        weights=8 * u, kv=4 * u, store=u / 2,
    )  # fmt: skip
    names, found, walls, expected = ("s1", "s2", "s3", "s4", "serial", "zero"), [], {}, {}
    passes = {name: emit(name, layers=3, micro_batches=4, seconds=seconds) for name in names}
    for name in names:
        expected[name] = simulate(passes[name]).makespan_s
        walls[name] = [
            # Weights and hidden states share the modelled link, as in the simulation.
            execute(passes[name], lambda task: time.sleep(task.seconds), named=attrgetter("lane")).makespan_s
            for _ in range(rounds)
        ]
        ratios = [wall / expected[name] for wall in walls[name]]
        found.append(
            row(f"padded lanes {name}: measured / simulated", "0.75-1.25", ratios, note="sleeps, 30 ms unit")
        )
    by = sorted(names, key=lambda name: expected[name])
    measured = sorted(names, key=lambda name: float(np.median(walls[name])))
    found.append(row("padded lanes: same order", "1", [float(by == measured)], note=" < ".join(measured)))
    return found


def start(folder: Path, rounds: int) -> list[Row]:
    """Compile time of a deep stack against a shallow one."""
    import jax

    base = ModelConfig(
        n_layers=4, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64, vocab_size=128,
        n_experts=4, experts_per_token=2,
    )  # fmt: skip
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    models = {
        layers: locate(
            measured_model.write(folder / f"start{layers}", dataclasses.replace(base, n_layers=layers))
        )
        for layers in (4, 32)
    }
    rest = {layers: load_rest(checkpoint) for layers, checkpoint in models.items()}

    def seconds(layers: int) -> float:
        jax.clear_caches()
        began_s = time.perf_counter()
        DecodeBench(models[layers], 8, 1, rest[layers])
        return time.perf_counter() - began_s

    deep, shallow = interleaved(rounds, lambda: seconds(32), lambda: seconds(4))
    jax.config.update("jax_enable_compilation_cache", kept)
    ratios = [a / b for a, b in zip(deep, shallow)]
    return [row("start of 32 layers / of 4", "<= 1.5", ratios, note="tracing and compiling, no cache")]


def accelerate(
    path: Path, python: Path, rounds: int, batches: tuple[int, ...], folder: Path, slots: int
) -> list[Row]:
    """`transformers` with accelerate's disk offload beside ours: a decode step of the same weights, cold."""
    checkpoint, found = locate(path), []
    script = Path(__file__).parent / "accelerate_side.py"
    targets = {1: ">= 6", 32: ">= 2.5", 128: ">= 1.5"}
    for batch in batches:
        bench, source = DecodeBench(checkpoint, batch, 1), sources.open_source(checkpoint)
        runner: Any
        if batch == 1:
            memory = Slots(slots, checkpoint, source.pages)
            runner = CacheRunner(
                memory,
                ExpertCache(slots),
                n_layers=checkpoint.config.n_layers,
                streams=checkpoint.streams,
                n_experts=checkpoint.config.n_experts,
            )
        else:
            runner = stream_runner(checkpoint, source, "s2")
        bench.run(runner)
        with _peer(python, script, path, folder, batch) as ask:

            def ours(
                bench: DecodeBench = bench, runner: Any = runner, batch: int = batch
            ) -> tuple[float, float]:
                if batch == 1:  # cold: an empty cache
                    runner.cache.give_back(runner.cache.lend(runner.cache.slots))
                cpu = time.process_time()
                wall_s = bench.run(runner)[0]
                return wall_s, time.process_time() - cpu

            mine, theirs = interleaved(rounds, ours, ask)
        source.close()
        how = "cache, emptied before each step" if batch == 1 else "stream"
        cached = max(b[2] for b in theirs)
        note = f"batch {batch}, {how}; ours by O_DIRECT, theirs with {cached:.1%} of its files in the cache"
        walls = [b[0] / a[0] for a, b in zip(mine, theirs)]
        found.append(
            row(f"accelerate / ours, seconds, batch {batch}", targets.get(batch, ""), walls, note=note)
        )
        cpus = [b[1] / max(a[1], 1e-3) for a, b in zip(mine, theirs)]
        target = ">= 2" if batch == 32 else ""
        found.append(row(f"accelerate / ours, CPU seconds, batch {batch}", target, cpus, note=note))
    return found


class _peer:
    """The other side's process: one line asks for a step, one answers with its seconds."""

    def __init__(self, python: Path, script: Path, path: Path, folder: Path, batch: int):
        self._args = [str(python), str(script), str(path), str(folder), str(batch)]

    def __enter__(self) -> Callable[[], tuple[float, float, float]]:
        self._process = subprocess.Popen(
            self._args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()
        return self._ask

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _ask(self) -> tuple[float, float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> tuple[float, float, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the other side ended with {self._process.wait()}: {' '.join(self._args)}")
        got = json.loads(line)
        return got["wall_s"], got["cpu_s"], got["cached"]
