"""Scheduling policies and cluster routers by name. Standard library only; nothing here reads a clock.

Examples:

    policy = fair.make("vtc", output_weight=2)
    policy = fair.make("dlpm", match=lambda request: cached_tokens(request), quantum_tok=5000)
    router = fair.make("d2lpm", quantum_tok=5000)
"""

import inspect
from typing import Any

from serving.fair.base import PolicyBase
from serving.fair.dfs_weight import DfsWeight
from serving.fair.dlpm import Dlpm
from serving.fair.drr import Drr
from serving.fair.equinox import Equinox
from serving.fair.fairserve import FairServe
from serving.fair.fcfs import Fcfs
from serving.fair.hrrn import Hrrn
from serving.fair.hvtc import Hvtc
from serving.fair.las import LeastAttained
from serving.fair.lpm import Lpm
from serving.fair.policy import Policy
from serving.fair.routers.base import LeastLoad, RoundRobinRouter, Router, Sticky
from serving.fair.routers.d2lpm import D2lpm
from serving.fair.routers.preble import Preble
from serving.fair.rpm import Rpm
from serving.fair.rr import RoundRobin
from serving.fair.vtc import Lcf, Vtc, VtcPredict, Wvtc
from serving.fair.vtc_preempt import VtcPreempt

__all__ = ["POLICIES", "ROUTERS", "Policy", "PolicyBase", "Router", "make", "options"]

POLICIES: dict[str, type[PolicyBase]] = {
    "fcfs": Fcfs,
    "rr": RoundRobin,
    "rpm": Rpm,
    "lcf": Lcf,
    "drr": Drr,
    "lpm": Lpm,
    "dfs_weight": DfsWeight,
    "hrrn": Hrrn,
    "vtc": Vtc,
    "vtc_predict": VtcPredict,
    "wvtc": Wvtc,
    "hvtc": Hvtc,
    "vtc_preempt": VtcPreempt,
    "dlpm": Dlpm,
    "las": LeastAttained,
    "fairserve": FairServe,
    "equinox": Equinox,
}


ROUTERS: dict[str, type[Router]] = {
    "round_robin": RoundRobinRouter,
    "least_load": LeastLoad,
    "sticky": Sticky,
    "preble": Preble,
    "d2lpm": D2lpm,
}


def options(name: str) -> dict[str, inspect.Parameter]:
    """The keyword options of a policy or router: its own first, then those of its base classes.

    Raises:
      ValueError: unknown name.
    """
    known: dict[str, type] = {**POLICIES, **ROUTERS}
    if name not in known:
        policies, routers = ", ".join(POLICIES), ", ".join(ROUTERS)
        raise ValueError(f"unknown policy {name!r}; known: {policies}; routers of a cluster: {routers}")
    found: dict[str, inspect.Parameter] = {}
    fixed: set[str] = set()
    for cls in known[name].__mro__:
        if "__init__" in vars(cls):
            for option in inspect.signature(cls).parameters.values():
                if option.kind is inspect.Parameter.KEYWORD_ONLY and option.name not in fixed:
                    found.setdefault(option.name, option)
        fixed |= set(vars(cls).get("FIXED_OPTIONS", ()))
    return found


def make(name: str, **given: Any) -> Any:
    """Creates a policy (see `Policy`) or a router (see `Router`) in its initial state.

    `match` is accepted for every name and ignored by those that do not use the prefix cache.

    Raises:
      ValueError: the name or an option is unknown, or an option is missing or out of range.
    """
    known = options(name)
    if "match" not in known:
        given.pop("match", None)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name!r} has no option {', '.join(unknown)}; known: {', '.join(known)}")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(missing)}")
    return POLICIES[name](**given) if name in POLICIES else ROUTERS[name](**given)
