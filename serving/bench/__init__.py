"""Benchmarks of the engine, one file per question, run by `python -m serving.bench`.

Every figure is a row; some have a goal. Ratios compare sides that ran interleaved in one process or one run.
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixattn.spec import ModelConfig

if TYPE_CHECKING:  # the flags are checked before jax is loaded
    from mixattn.model import Transformer

__all__ = ["MODEL", "Row", "Size", "network", "prompt", "row"]

# The shape of configs/demo.py, which this package may not import; a test holds them equal.
MODEL = ModelConfig(
    n_layers=6,
    d_model=128,
    n_heads=2,
    n_kv_heads=1,
    head_dim=64,
    d_ff=512,
    vocab_size=2048,
    kv_wiring="0s_0s_2_3s_3s_2",
    window=64,
)

type Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The size of a benchmark.

    Attributes:
      scale: factor on the lengths of the offline protocol.
      requests: number of requests of the offline protocol.
      repeats: interleaved rounds of what is compared.
    """

    scale: float = 0.125
    requests: int = 256
    repeats: int = 3


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def row(part: str, figure: str, value: float, unit: str, detail: str = "", goal: str = "") -> Row:
    """A figure as a row; `goal` is like ">= 0.98", and column `met` says whether the value meets it."""
    met = ""
    if goal:
        sign, bound = goal.split()
        met = "yes" if _COMPARE[sign](value, float(bound)) else "NO"
    return {
        "part": part,
        "figure": figure,
        "value": round(value, 4),
        "unit": unit,
        "goal": goal,
        "met": met,
        "detail": detail,
    }


def network(config: ModelConfig = MODEL) -> "Transformer":
    """A model with random weights."""
    from flax import nnx

    from mixattn.model import Transformer

    return Transformer(config, rngs=nnx.Rngs(0))


def prompt(rng: random.Random, length: int, vocab: int = MODEL.vocab_size) -> list[int]:
    return [rng.randrange(vocab) for _ in range(length)]
