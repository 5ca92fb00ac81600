"""Decoding one row with half of the experts in memory, of a trained model: routing is not uniform there."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving import EngineConfig, Request, Sampling
from serving.offload.bench.cases import Row, row
from serving.offload.machine_plan import GIB, MachineRates, MachineWorkload, Mode
from serving.offload.runtime import build, sources
from serving.offload.runtime.build import Offloaded
from serving.offload.runtime.checkpoint import MixtureCheckpoint, locate
from serving.offload.runtime.sources import ExpertSource

STEPS, LONGEST_TOK = 48, 128


class Side(NamedTuple):
    """One of the engines that are compared."""

    made: Offloaded
    source: ExpertSource

    def rate(self, prompt: Sequence[int]) -> tuple[float, list[int]]:
        """Tokens a second after the prompt, which streams on every side; and the tokens."""
        engine = self.made.engine
        sampling = Sampling(max_tokens=STEPS, temperature=0.0, ignore_eos=True)
        engine.submit(Request(client="a", prompt_ids=list(prompt), sampling=sampling))
        while engine.live and not any(delta.ids for delta in engine.step()):
            pass
        began_s, ids = time.perf_counter(), list[int]()
        while engine.live:
            for delta in engine.step():
                ids += delta.ids
        return len(ids) / (time.perf_counter() - began_s), ids

    def prompt_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Of every prompt token but the first."""
        sampling = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        asked = [Request(client="a", prompt_ids=list(prompt), sampling=sampling) for prompt in prompts]
        return [lp.logprob for output in self.made.engine.run(asked) for lp in output.prompt_logprobs]


def _side(
    checkpoint: MixtureCheckpoint,
    mode: Mode,
    slots: int,
    policy: str = "lru",
    *,
    prefetch: bool = False,
    **engine: int,
) -> Side:
    """An engine that holds `slots` experts; in mode `stream` those that stay and two layer buffers."""
    source = sources.open_source(checkpoint)
    rates, workload = MachineRates(1e9, 1e-3, 1e-5), MachineWorkload(1, LONGEST_TOK)
    plan = build.planner(checkpoint, rates, workload, 64 * GIB).best(mode)
    E, layers, stay = checkpoint.config.n_experts, len(checkpoint.streams), 0
    while mode == "stream" and stay + 1 + 2 * (E - (stay + 1) // layers) <= slots:
        stay += 1
    plan = dataclasses.replace(plan, slots=slots, resident=stay, rows=1, parts=1)
    config = build.engine_config(checkpoint, 1, 1, LONGEST_TOK, EngineConfig(**engine))  # type: ignore[arg-type]
    made = build.build(checkpoint, source, plan, config, cache_policy=policy, prefetch=prefetch)
    return Side(made, source)


def cache_or_stream(path: Path, prompts: list[list[int]], rounds: int) -> list[Row]:
    """Mode `cache` against mode `stream`."""
    checkpoint = locate(path)
    every = len(checkpoint.pages)
    slots = every // 2
    sides = {
        "stream": _side(checkpoint, "stream", slots),
        "cache": _side(checkpoint, "cache", slots),
        "frequency": _side(checkpoint, "cache", slots, "frequency"),
        "prefetch": _side(checkpoint, "cache", slots, prefetch=True),
    }
    rates, same = _rates(sides, prompts[: rounds + 1])
    counts = {name: side.made.runner.cache.counts for name, side in sides.items() if name != "stream"}  # type: ignore[union-attr]
    note = (
        f"{slots} of {every} experts in memory, trained model; hit rate lru {counts['cache'].hit_rate:.3f},"
        f" frequency {counts['frequency'].hit_rate:.3f}, share in memory {slots / every:.2f}; tokens equal:"
        f" {same}"
    )
    guessed = counts["prefetch"]
    about = (
        f"{guessed.right_guesses} of {guessed.guesses} experts that were guessed were asked for next; hit"
        f" rate {guessed.hit_rate:.3f}"
    )
    return [
        row(
            "cache / stream, tokens a second, batch 1",
            ">= 2",
            [a / b for a, b in zip(rates["cache"], rates["stream"])],
            note=note,
        ),
        row(
            "cache with prefetch / without, tokens a second, batch 1",
            "",
            [a / b for a, b in zip(rates["prefetch"], rates["cache"])],
            note=about,
        ),
    ]


def int8_or_stored(path: Path, prompts: list[list[int]], rounds: int) -> list[Row]:
    """Experts in 8 bits against experts as stored, in the same memory; and what rounding does to logits."""
    stored, small = locate(path), locate(path, "int8")
    slots = len(stored.pages) // 4
    fitting = min(len(stored.pages), slots * stored.slot_bytes // small.slot_bytes)
    sides = {
        "stored": _side(stored, "cache", slots, prompt_logprobs=True, logprobs=0),
        "int8": _side(small, "cache", fitting, prompt_logprobs=True, logprobs=0),
    }
    logprobs = {name: np.array(side.prompt_logprobs(prompts[:8])) for name, side in sides.items()}
    errors = np.abs(logprobs["int8"] - logprobs["stored"])
    rates, same = _rates(sides, prompts[: rounds + 1])
    note = (
        f"{slots} experts of {stored.config.dtype} against {fitting} of int8 in memory, trained model; tokens"
        f" equal: {same}"
    )
    ratios = [a / b for a, b in zip(rates["int8"], rates["stored"])]
    nll = {name: -float(values.mean()) for name, values in logprobs.items()}
    about = (
        f"{errors.size} prompt tokens; nats a token: stored {nll['stored']:.4f}, int8 {nll['int8']:.4f};"
        f" largest error {errors.max():.4f}"
    )
    return [
        row("int8 / stored experts, tokens a second, batch 1", "", ratios, note=note),
        row("int8: error of a token's log-probability", "", errors.tolist(), note=about),
        row(
            "int8 / stored, bytes of an expert in memory",
            "",
            [small.slot_bytes / stored.slot_bytes],
            note="codes, one scale per output channel beside them",
        ),
    ]


def _rates(sides: dict[str, Side], prompts: Sequence[Sequence[int]]) -> tuple[dict[str, list[float]], bool]:
    """Each side's tokens a second for all prompts but the first, in turns; and whether tokens are equal."""
    same, found = True, dict[str, list[float]]()
    for prompt in prompts:
        got = {name: side.rate(prompt) for name, side in sides.items()}
        same &= len({tuple(ids) for _, ids in got.values()}) == 1
        for name, (rate, _) in got.items():
            found.setdefault(name, []).append(rate)
    for side in sides.values():
        side.source.close()
    return {name: values[1:] for name, values in found.items()}, same
