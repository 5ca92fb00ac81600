"""The experiment that a trace file and a few choices describe: several policies on one server or cluster."""

import ast
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import fair
from serving.fair.service_report import LatencyTarget
from serving.request import ClientId
from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.traces import RequestTrace, TraceOptions, read_trace

COMPUTED_ONLY = ("dlpm",)  # policies that do not bill cached tokens, so that they do not count as service


def parse_cost(text: str) -> StepCost:
    """A step cost from `name=seconds,..`, or from a JSON file as --fit prints it; unnamed parts are the
    default's.

    Raises:
      ValueError: an unknown name or a value that is no number from 0 up.
    """
    if "=" in text:
        parts = [part.partition("=")[::2] for part in text.split(",")]
        given: Any = {name.strip(): _value(value) for name, value in parts}
    else:
        try:
            given = json.loads(Path(text).read_text())
        except ValueError as why:
            raise ValueError(f"cost file {text} is not JSON: {why}") from why
        if isinstance(given, dict):  # what --fit prints beside the constants
            given = {name: value for name, value in given.items() if name not in ("steps", "median_error")}
    known = [field.name for field in dataclasses.fields(StepCost)]
    if not isinstance(given, dict) or set(given) - set(known):
        found = ", ".join(sorted(set(given) - set(known))) if isinstance(given, dict) else given
        raise ValueError(f"cost has no part {found}; known: {', '.join(known)}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"cost.{name} is {value!r}, not a number of seconds")
    cost = StepCost(**given)
    cost.check()
    return cost


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Values by name from NAME=VALUE; a value that is no Python literal is text."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"option {text!r} is not NAME=VALUE")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text.strip())
    return text


def policy_runs(
    names: Sequence[str], options: dict[str, Any], weights: dict[str, float]
) -> tuple[list[PolicyRun], list[str]]:
    """The runs of these policies, and the names of those that cannot share by the given weights.

    A name may carry options of its own, as in `vtc:lift=fluid`; `options` go to every policy that has them.

    Raises:
      ValueError: an unknown policy, or an option that none of them has.
    """
    runs, blind, used = [], [], set[str]()
    for text in dict.fromkeys(names):
        name, *own = text.split(":")
        if name not in fair.POLICIES:
            raise ValueError(f"unknown policy {name!r}; known: {', '.join(fair.POLICIES)}")
        known = fair.options(name)
        given = {option: value for option, value in options.items() if option in known}
        used |= set(given)
        given |= parse_options(own)
        if strange := sorted(set(given) - set(known)):
            raise ValueError(f"policy {name} has no option {', '.join(strange)}; known: {', '.join(known)}")
        if weights and fair.POLICIES[name].WEIGHTED:
            given.setdefault("weights", weights)
        elif weights:
            blind.append(text)
        prompt_weights = (1.0, 0.0) if name in COMPUTED_ONLY else (1.0, 1.0)
        runs.append(PolicyRun(name, given, label=text, prompt_weights=prompt_weights))
    if unknown := sorted(set(options) - used):
        kinds = list(dict.fromkeys(run.policy for run in runs))
        lists = "; ".join(f"{name} has {', '.join(fair.options(name))}" for name in kinds)
        raise ValueError(f"policy {' and '.join(kinds)} has no option {', '.join(unknown)}; known: {lists}")
    return runs, blind


def trace_experiment(
    path: str | Path,
    format: str,
    options: TraceOptions,
    server: SimulatedEngine,
    runs: Sequence[PolicyRun],
    target: LatencyTarget,
    trace: RequestTrace,
) -> FairnessExperiment:
    """The experiment on the workload of a file, built anew for every seed but the first (`trace`).

    Where a policy shares by program, all are measured by program.
    """

    def requests(seed: int) -> list[Any]:
        return list((trace if seed == 0 else read_trace(path, format, options, seed)).requests)

    clients = {request.client for request in trace.requests}
    by_program = any(run.options.get("unit") == "program" for run in runs)
    return FairnessExperiment(
        id=Path(path).name,
        title=f"{len(trace.requests):,} requests of {len(clients):,} clients",
        requests=requests,
        server=server,
        runs=tuple(runs),
        demand_s=max(r.arrival_s for r in trace.requests if r.after is None),
        weights=dict(trace.weights),
        groups=_programs(trace) if by_program else {},
        target=target,
    )


def _programs(trace: RequestTrace) -> dict[ClientId, str]:
    """The program of every client whose requests all name the same one."""
    named: dict[ClientId, set[str]] = {}
    for request in trace.requests:
        named.setdefault(request.client, set()).add(request.program)
    return {client: program for client, (program, *more) in named.items() if program and not more}
