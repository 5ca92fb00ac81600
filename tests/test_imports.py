"""The arrows of ARCHITECTURE.md never turn back: configs, train and serving, mixattn, kernels, jax."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pallas_kernels", "mixattn", "serving", "train", "configs")
MODEL = {"pallas_kernels", "jax", "flax", "numpy"}
HOST = {"rich", "absl", "ml_collections"}
# What a module may import besides the standard library and its own room; the most specific prefix wins.
MAY: dict[str, set[str]] = {
    "pallas_kernels": {"jax", "numpy", "pallas_kernels", "tokamax"},  # tokamax: an extra, for GPUs
    "mixattn": MODEL | {"mixattn", "tokenizers", "safetensors", "ml_dtypes", "jinja2"} | HOST,
    "train": MODEL
    | HOST
    | {
        "mixattn",
        "train",
        "optax",
        "orbax",
        "grain",
        "tokenizers",
        "safetensors",
        "matplotlib",
        "jinja2",
        "tensorboardX",
    },
    "serving": MODEL | HOST | {"mixattn", "serving", "tokenizers", "matplotlib", "jinja2"},
    # Pure rooms: no jax, and no clock (see NO_CLOCK).
    "serving.fair": {"serving.fair", "serving.request"},
    "serving.request": set(),
    "serving.config": {"serving.clients"},
    "serving.tokens": {"numpy"},
    "serving.memory": {"numpy", "serving"},
    "serving.promises": {"serving"},
    "serving.clients": {"serving"},
    "serving.scheduler": {"serving", "numpy"},
    "serving.plan": {"serving"},
    "serving.pages": {"numpy"},
    "serving.prefix": {"numpy", "serving"},
    "serving.node": {"serving"},
    "serving.watch": set(),
    "serving.sim": {"serving", "numpy"},
    "serving.metropolis.rules": set(),
    "serving.metropolis.space": set(),
    "serving.metropolis.graph": {"serving.metropolis"},
    "serving.metropolis.modes": {"serving.metropolis"},
    "mixattn.evals": {"mixattn.evals", "numpy", "httpx2"},
    "configs": {"train", "serving", "mixattn", "configs"},
}
NO_CLOCK = (
    *(
        "serving.fair",
        "serving.sim",
        "serving.scheduler",
        "serving.plan",
        "serving.pages",
        "serving.prefix",
        "serving.node",
        "serving.watch",
        "serving.memory",
        "serving.promises",
    ),
    *(f"serving.metropolis.{pure}" for pure in ("rules", "space", "graph", "modes")),
)
CLOCKS = {"time", "datetime", "asyncio"}


def modules():
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; say where the name lives"
            found.add(node.module)
    return found


def under(name: str, prefixes) -> str | None:
    """The longest of `prefixes` that `name` lies under."""
    fits = [p for p in prefixes if name == p or name.startswith(p + ".")]
    return max(fits, key=len, default=None)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_module_imports_only_what_its_room_may(name, path):
    rule = under(name, MAY)
    assert rule, f"no rule covers {name}"
    for target in imports(path):
        if target.split(".")[0] in sys.stdlib_module_names | {"__future__"}:
            assert not (under(name, NO_CLOCK) and target in CLOCKS), f"{name} reads a clock: {target}"
        else:
            assert under(target, MAY[rule] | {rule}), f"{name} must not import {target}"
