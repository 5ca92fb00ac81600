"""The town on our own engine: the same story in every mode, and the wall-clock time of each mode.

Random weights suffice: residents accept any answer, and an answer that differs in one token changes what all
residents perceive from then on.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from serving.config import EngineConfig, Limits
from serving.metropolis.runtime.engine import Simulation
from serving.metropolis.runtime.inprocess import EngineModel
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.store import InMemoryStore, outcome_to_json
from serving.metropolis.schedule.schedulers import Mode
from serving.metropolis.town import make_town

if TYPE_CHECKING:
    from serving.engine.engine import Engine


@dataclass
class LiveTownConfig:
    """A town and a tiny random model that answers for its residents.

    Attributes:
      residents, steps, seed: size, length and seed of the town's run.
      layers, d_model, heads, kv_heads, window, wiring: shape of the model; its tokens are bytes.
      repeats: runs per mode, interleaved.
      engine: the engine's configuration.
    """

    residents: int = 12
    steps: int = 240
    seed: int = 0
    layers: int = 2
    d_model: int = 64
    heads: int = 4
    kv_heads: int = 2
    window: int = 64
    wiring: str = "0s_1"
    repeats: int = 3
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(
            max_slots=8,
            page_size=16,
            max_request_tok=1536,
            prefill_rows=(4,),
            limits=Limits(chunk_tok=256, step_tok=1024),
        )
    )

    def check(self) -> None:
        if min(self.residents, self.steps, self.repeats) < 1:
            counts = f"residents={self.residents}, steps={self.steps}, repeats={self.repeats}"
            raise ValueError(f"{counts}: each must be at least 1")


MODES: tuple[Mode, ...] = ("single_thread", "parallel_sync", "metropolis")


def run(config: LiveTownConfig) -> dict[str, Any]:
    """Runs the town in every mode, `repeats` times, interleaved.

    Returns:
      calls: number of calls per run; same: whether every run ended with the same story; seconds: wall-clock
      seconds of every run by mode; parallelism: mean calls in flight by mode.
    """
    config.check()
    model = EngineModel(_engine(config))
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    parallelism: dict[str, float] = {}
    stories = []
    calls = 0
    try:
        _run_town(
            replace(config, steps=2, residents=2), model, "metropolis"
        )  # warm-up: compiles, starts threads
        for _ in range(config.repeats):
            for mode in MODES:
                began = time.perf_counter()
                story, stats = _run_town(config, model, mode)
                seconds[mode].append(time.perf_counter() - began)
                parallelism[mode] = stats.parallelism
                stories.append(story)
                calls = stats.calls
    finally:
        model.close()
    return {"calls": calls, "same": all(s == stories[0] for s in stories), "seconds": seconds} | {
        "parallelism": parallelism
    }


def _engine(config: LiveTownConfig) -> "Engine":
    from flax import nnx

    from mixattn import ModelConfig, Transformer
    from serving import Engine

    model = ModelConfig(
        n_layers=config.layers,
        d_model=config.d_model,
        n_heads=config.heads,
        n_kv_heads=config.kv_heads,
        head_dim=config.d_model // config.heads,
        d_ff=4 * config.d_model,
        vocab_size=256,
        kv_wiring=config.wiring,
        window=config.window,
    )
    return Engine(Transformer(model, rngs=nnx.Rngs(config.seed)), config.engine)


def _run_town(config: LiveTownConfig, model: EngineModel, mode: Mode) -> tuple[str, RunStats]:
    """The story of one run as text (positions, states and every agent's history), and its statistics."""
    world, agents = make_town(config.residents)
    store = InMemoryStore()
    sim = Simulation(world, agents, model, mode=mode, seed=config.seed, store=store, max_in_flight=0)
    result = asyncio.run(sim.run(config.steps))
    history: dict[str, list[Any]] = {}
    for commit in store.log:
        out = outcome_to_json(commit.outcome)
        for name in commit.members:
            move, writes = out.get("moves", {}).get(name), [w for w in out.get("writes", ()) if w[0] == name]
            history.setdefault(name, []).append([commit.step, move, writes])
    story = json.dumps([result.positions, result.states, history], sort_keys=True)
    return story, result.stats
