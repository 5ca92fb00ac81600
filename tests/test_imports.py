"""The arrows of ARCHITECTURE.md never turn back: configs, train and serving, mixattn, kernels, jax."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pallas_kernels", "mixattn", "serving", "train", "configs")
MODEL = {"pallas_kernels", "jax", "flax", "numpy"}
HOST = {"rich", "absl", "ml_collections"}
# What a module may import besides the standard library and its own room; the most specific prefix wins.
MAY: dict[str, set[str]] = {
    "pallas_kernels": {"jax", "numpy", "absl", "tokamax"},  # tokamax: an extra, for GPUs
    "mixattn": MODEL | {"tokenizers", "safetensors", "ml_dtypes", "jinja2", "gguf"} | HOST,
    "mixattn.hf.export.modeling_mixattn": {
        "torch",
        "transformers",
    },  # runs elsewhere, imported by nobody here
    "mixattn.chat_template": {"jinja2"},
    "mixattn.spec": {"numpy", "ml_dtypes", "mixattn.tools"} | HOST,
    # The command draws and, when asked, counts live cache arrays.
    "mixattn.spec.drawing": {"mixattn.spec", "mixattn.cache", "mixattn.tools"} | HOST,
    "mixattn.evals": {"numpy", "httpx2"},
    "mixattn.evals.dafny": {"mixattn.tools", "absl", "rich"},
    "mixattn.evals.clover": {
        *("mixattn.evals.dafny", "mixattn.evals.llm", "mixattn.tools", "pallas_kernels.results"),
        *("absl", "rich"),
    },
    "mixattn.evals.dafnybench": {
        *(
            "mixattn.evals.dafny",
            "mixattn.evals.llm",
            "mixattn.tools",
            "pallas_kernels.results",
            "absl",
            "rich",
        )
    },
    "mixattn.evals.__main__": set(),
    "mixattn.evals.command_line": {"absl", "mixattn.tools.cli"},
    "mixattn.evals.longcontext": {"numpy", "mixattn.tools", "matplotlib"},
    "mixattn.evals.longcontext.checkpoint": MODEL | {"mixattn"},
    "mixattn.evals.longcontext.command": {"mixattn.evals", "mixattn.tools", "pallas_kernels.results"} | HOST,
    "mixattn.evals.arena.stats": {"numpy", "scipy", "pyarrow"},
    "mixattn.evals.arena.platform": {"mixattn.evals.llm", "mixattn.evals.arena.stats"}
    | {"numpy", "scipy", "starlette", "jinja2", "httpx2"},
    "mixattn.evals.arena.commands": {
        "mixattn.evals.arena",
        "mixattn.evals.command_line",
        "mixattn.tools",
        "pallas_kernels.results",
    }
    | {"numpy", "scipy", "pyarrow", "uvicorn", "matplotlib", "httpx2"}
    | {"choix", "evalica", "arena_rank", "pandas"}  # measured beside ours where installed
    | HOST,
    "mixattn.evals.judge": {"mixattn.evals.llm", "mixattn.evals.arena.stats", "mixattn.tools", "numpy"},
    "mixattn.evals.judge.commands": {"mixattn.evals", "mixattn.tools"} | HOST,
    "train": MODEL
    | HOST
    | {
        "mixattn",
        "optax",
        "orbax",
        "grain",
        "tokenizers",
        "ml_dtypes",
        "safetensors",
        "matplotlib",
        "jinja2",
        "tensorboardX",
        "pyarrow",
        "xxhash",
        "etils",
    },
    # The one experiment that measures with the engine; it holds no training.
    "train.experiments.served": {"mixattn", "serving", "numpy"},
    "serving": MODEL | HOST | {"mixattn", "tokenizers", "matplotlib", "jinja2"},
    "serving.cluster": {"serving", "mixattn", "starlette", "absl", "httptools", "prometheus_client"},
    "serving.cluster.ray_worker": {"serving", "ray"},
    # Pure: who gets what, how fast a worker is, when there should be another, and a router's log.
    "serving.cluster.autoscaler": set(),
    "serving.cluster.capacity": {"serving.engine.stats", "numpy"},
    "serving.cluster.decisions": {"serving.fair", "serving.request"},
    "serving.cluster.live_output": {"serving.fair", "serving.request"},
    "serving.cluster.ingress": {"serving.cluster.live_output", "serving.fair", "serving.request"},
    "serving.cluster.reports": {"serving.cluster.live_output", "serving.engine.stats", "serving.request"},
    "serving.http": {"mixattn", "serving", "numpy", "starlette", "uvicorn", "h11", "tokenizers"}
    | {"prometheus_client", "llguidance", "absl"},
    # A process of its own, with nothing of the server in it.
    "serving.http.template_worker": {"jinja2", "mixattn.chat_template"},
    # Runs in the environment of the comparison, imported by nobody here.
    "serving.offload.bench.accelerate_side": {"torch", "accelerate", "transformers", "numpy"},
    # Behind lm-evaluation-harness, in an environment of its own.
    "serving.evals.harness": {"mixattn", "serving", "pallas_kernels.results", "numpy", "lm_eval", "datasets"}
    | HOST,
    "serving.bench.client": {"mixattn.tools", "numpy", "httptools"} | HOST,
    "serving.request": set(),
    "serving.config": set(),
    # Pure rooms: no jax, and no clock (see NO_CLOCK).
    "serving.fair": {"serving.request"},
    "serving.fair.gap_meter": {"serving.fair", "serving.request", "numpy"},
    "serving.kvcache": {"numpy", "pallas_kernels.masks", "serving.request", "serving.config"},
    "serving.kvcache.sizing": {"serving.kvcache", "serving.config", "mixattn.spec", "numpy"},
    "serving.engine.plan": {"serving.kvcache", "serving.request"},
    "serving.engine.scheduler": {"serving.kvcache", "serving.request", "serving.config", "serving.fair"}
    | {"serving.engine.plan", "serving.engine.admission_window"},
    "serving.engine.admission_window": set(),
    "serving.sim": {"numpy", "serving.engine.plan", "serving.engine.scheduler"}
    | {f"serving.{room}" for room in ("kvcache", "fair", "request", "config")},
    "serving.sim.suites": {
        "serving.sim",
        "serving.fair",
        "serving.engine",
        "serving.kvcache",
        "serving.request",
    }
    | {"serving.config", "mixattn.tools", "pallas_kernels.results", "matplotlib", "numpy", "rich"},
    "serving.metropolis.schedule": {"serving.metropolis.world"},
    **{
        f"serving.offload.{name}": {"serving.offload", "mixattn.spec"}
        for name in (
            *("hardware", "shapes", "roofline", "plan", "search", "schedule", "simulate", "hazards"),
            *("batching", "durations", "paper", "experiment", "machine_plan"),
        )
    },
    "configs": {"train", "serving", "mixattn"},
}
NO_CLOCK = (
    *(f"serving.{room}" for room in ("fair", "kvcache", "sim", "engine.scheduler", "engine.plan")),
    *("serving.metropolis.schedule", "serving.cluster.ingress", "serving.cluster.live_output"),
    *("serving.cluster.autoscaler", "serving.cluster.decisions"),
    *(f"serving.offload.{name}" for name in ("hardware", "shapes", "roofline", "plan", "search", "schedule")),
    *(f"serving.offload.{name}" for name in ("simulate", "hazards", "batching", "durations", "experiment")),
    "serving.offload.machine_plan",
    "serving.offload.runtime.cache",
)
CLOCKS = {"time", "datetime", "asyncio"}
NO_JAX = (*NO_CLOCK, "mixattn.spec", "mixattn.evals")


def modules(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(source: str, known: Iterable[str] = MODULES) -> set[str]:
    """Modules that a source file imports; `from package import module` names the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import; say where the name lives"
            found |= {
                full if (full := f"{node.module}.{alias.name}") in known else str(node.module)
                for alias in node.names
            }
    return found


def under(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of `prefixes` that `name` lies under."""
    fits = [p for p in prefixes if name == p or name.startswith(p + ".")]
    return max(fits, key=len, default=None)


def broken_arrows(name: str, source: str) -> list[str]:
    """Imports of module `name` that its room may not make."""
    rule = under(name, MAY)
    assert rule, f"no rule covers {name}"
    broken = []
    for target in imports(source):
        if target.split(".")[0] in sys.stdlib_module_names | {"__future__"}:
            if under(name, NO_CLOCK) and target in CLOCKS:
                broken.append(f"{name} reads a clock: {target}")
        elif not under(target, MAY[rule] | {rule}):
            broken.append(f"{name} must not import {target}")
    return broken


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of modules that import each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = [stack.pop()]
            while group[-1] != v:
                group.append(stack.pop())
            if len(group) > 1 or v in graph[v]:
                found.append(sorted(group))

    for v in graph:
        if v not in index:
            visit(v)
    return found


def classes(sources: dict[str, str]) -> dict[str, list[str]]:
    """Public top-level class name -> the modules that define it."""
    homes: dict[str, list[str]] = {}
    for name, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    return homes


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_its_room_may(name):
    assert not broken_arrows(name, MODULES[name].read_text())


def test_a_turned_arrow_and_a_clock_are_noticed():
    assert broken_arrows("serving.fair.vtc", "import jax") == ["serving.fair.vtc must not import jax"]
    assert broken_arrows("mixattn.model", "from serving import Engine")
    assert broken_arrows("serving.kvcache.manager", "import time") == [
        "serving.kvcache.manager reads a clock: time"
    ]
    assert broken_arrows("serving.sim.worker", "from serving.engine import steps")


def test_no_module_imports_itself_through_others():
    graph = {name: imports(path.read_text()) & MODULES.keys() for name, path in MODULES.items()}
    assert not circles(graph)


def test_a_circle_is_noticed():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_pure_rooms_load_without_jax():
    """What a pure module imports, its imports import too: the whole way must be free of jax."""
    graph = {name: imports(path.read_text()) for name, path in MODULES.items()}
    lazy = {"serving", "mixattn"}  # their heavy names load when first used
    for start in (name for name in MODULES if under(name, NO_JAX) and not under(name, LOADS_JAX)):
        seen, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name in seen or name in lazy:
                continue
            seen.add(name)
            assert name.split(".")[0] not in ("jax", "flax"), f"{start} reaches {name}"
            todo += graph.get(name, set())


# Commands inside pure rooms: pictures, and live arrays on request.
LOADS_JAX = (
    "mixattn.spec.drawing",
    "mixattn.spec.__main__",
    "serving.sim.suites",
    "mixattn.evals.dafnybench.command",
    "mixattn.evals.dafnybench.measurements",
    "mixattn.evals.clover.command",
    "mixattn.evals.arena.commands",
    "mixattn.evals.longcontext.checkpoint",
    "mixattn.evals.longcontext.command",
)


def test_a_public_class_name_means_one_thing():
    homes = classes({name: path.read_text() for name, path in MODULES.items()})
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_a_second_meaning_is_noticed():
    twice = classes({"a": "class Run: ...", "b": "class Run: ...\nclass _Own: ...", "c": "class _Own: ..."})
    assert twice == {"Run": ["a", "b"]}


def test_serving_has_no_branch_on_the_kind_of_a_page_group():
    """Kinds are objects (`serving.kvcache.groups`); window arithmetic is `pallas_kernels.masks`."""
    branch = re.compile(r"\bwindow is (not )?None|None in windows|window\s*[-+]\s*1\b|\+ \w+\.window\b")
    assert branch.search("if layer.window is None:")
    found = {
        name: hits
        for name, path in MODULES.items()
        if name.startswith("serving") and (hits := branch.findall(path.read_text()))
    }
    assert not found
