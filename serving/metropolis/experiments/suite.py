"""Experiments in virtual time: a grid of settings, one row of a CSV each, summaries over seeds, a picture.

Rows are appended as they finish; run the command again after Ctrl-C and it goes on with the missing ones. A
CSV of another recipe (config, generator, commit of the recipe's fields) is not mixed in: it is refused.
"""

import csv
import json
import multiprocessing
import platform
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mixattn.tools import files
from pallas_kernels import results
from serving.metropolis.experiments.bounds import critical_path, sights, unloaded
from serving.metropolis.experiments.replay import RULES, Variant, replay
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.schedule.rules import Rule
from serving.metropolis.worlds import synthetic
from serving.metropolis.worlds.social import NetworkConfig, Poster, SocialNetwork, network_sights
from serving.metropolis.worlds.synthetic import TownConfig, generate

BOUNDS = ("single_thread", "critical", "no_dependency")


@dataclass
class MetropolisExperiment:
    """A grid: every combination of the tuples is run for every seed.

    Attributes:
      name: of the files it writes under `out`.
      agents, hours, replicas, slots, priorities: what varies; `slots` is a replica's `max_running`.
      servers: cost constants by label; replicas, slots and priority are set from the grid.
      modes: schedules to replay; `single_thread` is the sum of unloaded latencies, which it equals.
      variants: of metropolis, by label; other modes run once, under the first.
      network: for the graph experiment; agents and hours are then unused, of variants the rule is used.
      seeds: number of seeds, 0, 1, ...
    """

    name: str
    agents: tuple[int, ...] = (25,)
    hours: tuple[int, ...] = (12,)
    replicas: tuple[int, ...] = (8,)
    slots: tuple[int, ...] = (64,)
    priorities: tuple[bool, ...] = (True,)
    servers: dict[str, ServerConfig] = field(default_factory=lambda: {"8B on L4": ServerConfig()})
    modes: tuple[str, ...] = ("single_thread", "parallel_sync", "metropolis", "oracle", "critical")
    variants: dict[str, Variant] = field(default_factory=lambda: {"paper": Variant()})
    network: NetworkConfig | None = None
    seeds: int = 5
    out: str = "results/metropolis"

    def check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        for server in self.servers.values():
            server.check()
        for variant in self.variants.values():
            variant.check()

    def settings(self) -> Iterator[dict[str, Any]]:
        """Every row's key, cheapest agents first."""
        for agents in self.agents if self.network is None else (self.network.nodes,):
            for seed in range(self.seeds):
                for hour in self.hours:
                    for server in self.servers:
                        for replicas in self.replicas:
                            for slots in self.slots:
                                for priority in self.priorities:
                                    key = {"agents": agents, "hour": hour, "seed": seed, "server": server}
                                    key |= {"replicas": replicas, "slots": slots, "priority": int(priority)}
                                    yield from self._modes(key)

    def _modes(self, key: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for mode in self.modes:
            for variant in self.variants if mode == "metropolis" else tuple(self.variants)[:1]:
                yield {**key, "mode": mode, "variant": variant}


KEY = ("agents", "hour", "seed", "server", "replicas", "slots", "priority", "mode", "variant")
MEASURED = (
    *("elapsed_s", "calls", "prompt_tok", "output_tok", "parallelism", "peak_in_flight", "commits"),
    *("mean_cluster", "largest_cluster", "largest_lead", "mean_waited_s"),
)


def run(
    experiment: MetropolisExperiment, *, workers: int = 1, tell: Callable[[int, int], None] = lambda *_: None
) -> Path:
    """Runs what is missing and returns the CSV; `tell(done, total)` after each row."""
    experiment.check()
    path = Path(experiment.out) / f"{experiment.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = list(experiment.settings())
    have = {tuple(str(row[k]) for k in KEY) for row in _open(path, experiment)}
    missing = [s for s in settings if tuple(str(s[k]) for k in KEY) not in have]
    done = len(settings) - len(missing)
    tell(done, len(settings))
    # Spawned, not forked: a fork of a process that has threads (jax's, say) may never wake up.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh) as pool, path.open("a", newline="") as out:
        writer = csv.DictWriter(out, (*KEY, *MEASURED))
        try:
            for future in as_completed([pool.submit(measure, experiment, s) for s in missing]):
                writer.writerow(future.result())
                out.flush()
                done += 1
                tell(done, len(settings))
        except BaseException:  # Ctrl-C among them: do not sit through the rows that have not begun
            pool.shutdown(cancel_futures=True)
            raise
    summary = summarise(results.read_csv(path), published=experiment.network is None)
    files.write_json(path.with_suffix(".json"), {"about": about(experiment), "summary": summary})
    return path


def measure(experiment: MetropolisExperiment, setting: dict[str, Any]) -> dict[str, Any]:
    """One row: a whole replay."""
    server = replace(
        experiment.servers[setting["server"]],
        replicas=setting["replicas"],
        max_running=setting["slots"],
        priority=bool(setting["priority"]),
    )
    mode = setting["mode"]
    if experiment.network is not None:
        rule = RULES[experiment.variants[setting["variant"]].rule]
        found = _network(replace(experiment.network, seed=setting["seed"]), mode, server, rule)
    else:
        found = _town(setting, mode, server, experiment.variants[setting["variant"]])
    return {**setting, **{k: _short(found.get(k, "")) for k in MEASURED}}


def _town(setting: dict[str, Any], mode: str, server: ServerConfig, variant: Variant) -> dict[str, Any]:
    trace = generate(TownConfig(agents=setting["agents"], hour=setting["hour"], seed=setting["seed"]))
    cost = unloaded(server)
    size = {"calls": trace.call_count, "prompt_tok": trace.tokens()[0], "output_tok": trace.tokens()[1]}
    if mode == "single_thread":
        return {**size, "elapsed_s": sum(cost(chain) for mine in trace.calls for chain in mine.values())}
    if mode == "critical":
        return {**size, "elapsed_s": critical_path(trace, sights(trace), cost)}
    return dict(replay(trace, mode, server, variant=variant).summary())  # type: ignore[arg-type]


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


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


# ---- files ------------------------------------------------------------------------------------------------
def about(experiment: MetropolisExperiment) -> dict[str, Any]:
    """The recipe of a result: what was run, with what, where."""
    return {
        "config": json.loads(json.dumps(asdict(experiment))),
        "generator_version": synthetic.VERSION,
        "data": "synthetic traces in virtual time; not a reproduction of the paper's measurements",
        "reach": "perceive 4, move 1 tiles (Chebyshev) unless a variant says otherwise",
        "device": results.VIRTUAL,
        "python": platform.python_version(),
        "commit": results.commit(),
    }


def _open(path: Path, experiment: MetropolisExperiment) -> list[dict[str, str]]:
    recipe = about(experiment)
    if not path.exists():
        lines = [f"# {name}: {json.dumps(value)}" for name, value in recipe.items()]
        files.write_text(path, "\n".join(lines) + "\n" + ",".join((*KEY, *MEASURED)) + "\n")
        return []
    held = dict(line[2:].split(": ", 1) for line in path.read_text().splitlines() if line.startswith("# "))
    for name in ("config", "generator_version"):
        if json.loads(held[name]) != recipe[name]:
            raise ValueError(f"{path} holds rows of another recipe ({name} differs); move it away first")
    return results.read_csv(path)


# What the paper measured on its own traces and machines, as (over parallel-sync, share of the oracle):
# agents, hour (12 busy, 6 quiet, -1 a whole day), replicas of an L4. None was not published.
PAPER: dict[tuple[int, ...], tuple[float, float | None]] = {
    (25, -1, 1): (1.44, None),
    (25, -1, 8): (1.67, 0.747),
    (25, 12, 8): (1.88, 0.531),
    (25, 6, 8): (1.28, None),
    (100, 12, 1): (1.87, 0.90),
    (500, 12, 1): (1.60, 1.00),
    (500, 12, 8): (4.15, 0.924),
    (500, 6, 8): (2.79, None),
    (1000, 12, 8): (3.94, 0.97),
}
PAPERS_OWN = ("metropolis", "paper", "8B on L4")


# ---- summaries --------------------------------------------------------------------------------------------
GROUP = ("agents", "hour", "server", "replicas", "slots", "priority")


def summarise(rows: list[dict[str, str]], *, published: bool = True) -> list[dict[str, Any]]:
    """One entry a setting, mode and variant: mean and spread over seeds, speed-ups, share of the oracle.

    Ratios are taken seed by seed (same trace on both sides), then averaged. `published` adds the paper's
    figures where it has the same setting.
    """
    cells: dict[tuple, dict[tuple[str, str], dict[str, dict[str, str]]]] = {}
    for row in rows:
        setting = cells.setdefault(tuple(row[k] for k in GROUP), {})
        setting.setdefault((row["mode"], row["variant"]), {})[row["seed"]] = row
    return [
        {
            **dict(zip(GROUP, key)),
            **{"mode": mode, "variant": variant},
            **_figures(by_seed, setting),
            **(_published(dict(zip(GROUP, key)), mode, variant) if published else {}),
        }
        for key, setting in cells.items()
        for (mode, variant), by_seed in setting.items()
    ]


def _published(setting: dict[str, str], mode: str, variant: str) -> dict[str, Any]:
    """The paper's figures for the same setting on its own traces, where it gives any."""
    where = tuple(int(setting[name]) for name in ("agents", "hour", "replicas"))
    told = PAPER.get(where) if (mode, variant, setting["server"]) == PAPERS_OWN else None
    return {"paper_vs_sync": told[0], "paper_of_oracle": told[1]} if told else {}


def _figures(by_seed: dict[str, dict[str, str]], setting: dict) -> dict[str, Any]:
    out: dict[str, Any] = {"seeds": len(by_seed)}
    out |= _spread("elapsed_s", [float(r["elapsed_s"]) for r in by_seed.values()])
    if all(r["parallelism"] for r in by_seed.values()):
        out |= _spread("parallelism", [float(r["parallelism"]) for r in by_seed.values()])
    out |= _spread("calls", [float(r["calls"]) for r in by_seed.values()])
    for name, mode in (
        ("vs_sync", "parallel_sync"),
        ("vs_single", "single_thread"),
        ("of_oracle", "oracle"),
        ("of_critical", "critical"),
    ):
        other: dict[str, dict[str, str]] = next((v for (m, _), v in setting.items() if m == mode), {})
        seeds = {s for s in by_seed.keys() & other.keys() if float(by_seed[s]["elapsed_s"])}
        if seeds:  # hours without calls take no time and have no ratios
            ratio = [float(other[s]["elapsed_s"]) / float(by_seed[s]["elapsed_s"]) for s in sorted(seeds)]
            out |= _spread(name, ratio)
    return out


def _spread(name: str, values: list[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: round(statistics.fmean(values), 4), f"{name}_sd": round(spread, 4)}
