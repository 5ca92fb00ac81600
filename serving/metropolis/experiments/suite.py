"""Experiments in virtual time: a grid of settings, one CSV row per setting and seed.

Every finished row is written at once, so the command resumes with the missing rows after Ctrl-C. It refuses
to add rows to a CSV of another config or another version of the trace generator.
"""

import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mixattn.tools import files
from pallas_kernels import results
from serving.metropolis.experiments.bounds import critical_path, sights, unloaded_latency
from serving.metropolis.experiments.simulate import RULES, MetropolisVariant, simulate_trace
from serving.metropolis.experiments.summary import summarise
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.schedule.rules import Rule
from serving.metropolis.worlds import synthetic
from serving.metropolis.worlds.social import NetworkConfig, Poster, SocialNetwork, network_sights
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace


@dataclass
class MetropolisExperiment:
    """A grid: every combination of the tuples runs for every seed.

    Attributes:
      name: name of the files under `out`, without suffix.
      agents, hours, replicas, slots, priorities: what varies; `slots` is `max_running` of a replica.
      servers: cost constants by label; replicas, slots and priority come from the grid.
      modes: schedulers and bounds to run; `single_thread` is computed as the sum of unloaded latencies.
      variants: variants of metropolis by label; other modes run once, under the first label.
      network: a social network instead of a town; agents and hours are then unused, and only the rule of
        each variant is used.
      seeds: number of seeds: 0, 1, ...
    """

    name: str
    agents: tuple[int, ...] = (25,)
    hours: tuple[int, ...] = (12,)
    replicas: tuple[int, ...] = (8,)
    slots: tuple[int, ...] = (64,)
    priorities: tuple[bool, ...] = (True,)
    servers: dict[str, ServerConfig] = field(default_factory=lambda: {"8B on L4": ServerConfig()})
    modes: tuple[str, ...] = ("single_thread", "parallel_sync", "metropolis", "oracle", "critical")
    variants: dict[str, MetropolisVariant] = field(default_factory=lambda: {"paper": MetropolisVariant()})
    network: NetworkConfig | None = None
    seeds: int = 5
    out: str = "results/metropolis"

    def check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        for axis in ("agents", "hours", "replicas", "slots", "priorities", "servers", "modes", "variants"):
            if not getattr(self, axis):
                raise ValueError(f"{axis} is empty; the grid needs at least one value of it")
        for server in self.servers.values():
            server.check()
        for variant in self.variants.values():
            variant.check()

    def settings(self) -> Iterator[dict[str, Any]]:
        """The key of every row, in the order of `agents`."""
        agents = self.agents if self.network is None else (self.network.nodes,)
        sizes = (self.servers, self.replicas, self.slots, map(int, self.priorities))
        for n_agents, seed, hour, *server in itertools.product(agents, range(self.seeds), self.hours, *sizes):
            for mode in self.modes:
                for variant in self.variants if mode == "metropolis" else tuple(self.variants)[:1]:
                    yield dict(zip(KEY, (n_agents, hour, seed, *server, mode, variant)))


KEY = ("agents", "hour", "seed", "server", "replicas", "slots", "priority", "mode", "variant")
MEASURED = (
    *("elapsed_s", "calls", "prompt_tok", "output_tok", "parallelism", "peak_in_flight", "commits"),
    *("mean_cluster", "largest_cluster", "largest_lead", "mean_waited_s"),
)


def run(
    experiment: MetropolisExperiment,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Runs the missing rows, writes a CSV and a JSON summary, and returns the path of the CSV.

    Args:
      workers: processes to run rows in.
      on_progress: called with (rows done, rows in total) after each row.

    Raises:
      ValueError: a bad experiment, or a CSV of another recipe is in the way.
    """
    experiment.check()
    path = Path(experiment.out) / f"{experiment.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = list(experiment.settings())
    recipe, rows = _resume(path, experiment)
    finished = {tuple(str(row[k]) for k in KEY) for row in rows}
    missing = [s for s in settings if tuple(str(s[k]) for k in KEY) not in finished]
    on_progress(len(settings) - len(missing), len(settings))
    # Spawned, not forked: a fork of a process with threads (such as jax's) can deadlock.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            futures = [pool.submit(measure, experiment, s) for s in missing]
            for done, future in enumerate(as_completed(futures), len(settings) - len(missing) + 1):
                rows.append(future.result())
                results.write_csv(path, rows, quiet=True, **recipe)
                on_progress(done, len(settings))
        except BaseException:  # Ctrl-C included: do not start the remaining rows
            pool.shutdown(cancel_futures=True)
            raise
    summary = summarise(results.read_csv(path), published=experiment.network is None)
    files.write_json(path.with_suffix(".json"), {"about": about(experiment), "summary": summary})
    return path


def measure(experiment: MetropolisExperiment, setting: dict[str, Any]) -> dict[str, Any]:
    """One row: simulates a whole trace or network under one setting."""
    server = replace(
        experiment.servers[setting["server"]],
        replicas=setting["replicas"],
        max_running=setting["slots"],
        priority=bool(setting["priority"]),
    )
    mode = setting["mode"]
    if experiment.network is not None:
        rule = RULES[experiment.variants[setting["variant"]].rule]
        measured = _network(replace(experiment.network, seed=setting["seed"]), mode, server, rule)
    else:
        measured = _town(setting, mode, server, experiment.variants[setting["variant"]])
    return {**setting, **{k: _rounded(measured.get(k, "")) for k in MEASURED}}


def _town(
    setting: dict[str, Any], mode: str, server: ServerConfig, variant: MetropolisVariant
) -> dict[str, Any]:
    config = SyntheticTraceConfig(agents=setting["agents"], hour=setting["hour"], seed=setting["seed"])
    trace = generate_trace(config)
    cost = unloaded_latency(server)
    size = {"calls": trace.call_count, "prompt_tok": trace.tokens()[0], "output_tok": trace.tokens()[1]}
    if mode == "single_thread":
        chains = (chain for by_step in trace.calls for chain in by_step.values())
        return {**size, "elapsed_s": sum(map(cost, chains))}
    if mode == "critical":
        return {**size, "elapsed_s": critical_path(trace, sights(trace), cost)}
    return dict(simulate_trace(trace, mode, server, variant=variant).summary())  # type: ignore[arg-type]


def _network(config: NetworkConfig, mode: str, server: ServerConfig, rule: Rule) -> dict[str, Any]:
    world = SocialNetwork(config)
    poster = Poster(config)
    sim = Simulation(
        world,
        {world.name(i): poster for i in range(config.nodes)},
        SimulatedServer(server),
        mode=mode,  # type: ignore[arg-type]
        seed=config.seed,
        rule=rule,
        sights=network_sights(world) if mode == "oracle" else None,
        max_in_flight=0,
    )
    return dict(run_virtual(sim.run(config.steps)).stats.summary())


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


# ---- files ------------------------------------------------------------------------------------------------
def about(experiment: MetropolisExperiment) -> dict[str, Any]:
    """The recipe of a result: config, generator and environment."""
    return {
        "config": asdict(experiment),
        "generator_version": synthetic.VERSION,
        "data": "synthetic traces in virtual time; not a reproduction of the paper's measurements",
        "reach": "perceive 4, move 1 tiles (Chebyshev) unless a variant says otherwise",
        "device": results.VIRTUAL,
        **results.surroundings(but={"device"}),
    }


def _resume(path: Path, experiment: MetropolisExperiment) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The recipe and the rows of an earlier run, or a new recipe and no rows.

    Raises:
      ValueError: the rows have another recipe.
    """
    recipe = about(experiment)
    recipe["config"] = json.dumps(recipe["config"])
    if not path.exists():
        return recipe, []
    held = results.read_recipe(path)
    for name in ("config", "generator_version"):
        if json.loads(held.get(name, "null")) != json.loads(str(recipe[name])):
            raise ValueError(f"{path} holds rows of another recipe ({name} differs); move it away first")
    return held, list(results.read_csv(path))
