"""How a gradient becomes an update: schedule, clip, rule by parameter, weight decay, freezing.

Parameters are a flat dict from path ("blocks.3.attention.q.kernel") to array, so that every choice by
parameter is a choice by name and shape.
"""

import re
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

type Params = dict[str, jax.Array]

_SCHEDULES = ("linear", "cosine", "wsd", "constant")
_RULES = ("adamw", "lion", "muon")
# Embedding and head have one row a token, not a map between widths: Muon's orthogonal update does not suit.
_TABLES = re.compile(r"(^|\.)(embed\w*|lm_head|positions?)(\.|$)")
# What `trains="attention"` means: the projections and norms of attention, nothing else.
_ATTENTION = re.compile(r"(^|\.)attention(\.|$)|attention_norm")


@dataclass
class Optimizer:
    """The rule and its rates.

    Attributes:
      rule: "adamw", "lion", or "muon" (which takes matrices; embedding, head, norms and biases get Adam).
      rate: peak learning rate; of Muon's matrices where the rule is "muon".
      adam_rate: peak rate of the rest under "muon" (0 = `rate`).
      schedule: after `warmup` steps from 0, "linear" or "cosine" to `final * rate`, "constant", or "wsd":
        constant, then linear to `final * rate` over the last `decay_share` of the steps.
      clip: largest global norm of a gradient (0 = off).
      weight_decay: on matrices only; never on norms, biases and embeddings.
    """

    rule: str = "muon"
    rate: float = 0.02
    adam_rate: float = 0.004
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    schedule: str = "linear"
    warmup: int = 30
    final: float = 0.02
    decay_share: float = 0.3
    clip: float = 0.0
    weight_decay: float = 0.0

    def check(self) -> None:
        if self.rule not in _RULES:
            raise ValueError(f"optimizer.rule is {self.rule!r}; it must be one of {', '.join(_RULES)}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(
                f"optimizer.schedule is {self.schedule!r}; it must be one of {', '.join(_SCHEDULES)}"
            )
        for name in ("rate", "adam_rate", "clip", "weight_decay", "warmup", "final"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it cannot be negative")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"optimizer.decay_share is {self.decay_share}; it is a share of the steps")


def factor(config: Optimizer, step: jax.Array, steps: jax.Array) -> jax.Array:
    """What the peak rates are multiplied by at `step` (from 0) of `steps`; float32 scalar.

    Both are arrays, so that a stage whose length is measured first need not be compiled twice.
    """
    step, steps = (x.astype(jnp.float32) for x in (step, steps))
    warm = jnp.minimum((step + 1) / config.warmup, 1.0) if config.warmup else jnp.float32(1)
    left = jnp.maximum(steps - config.warmup, 1)
    match config.schedule:
        case "linear":
            done = jnp.clip((step - config.warmup) / left, 0, 1)
            shape = 1 - (1 - config.final) * done
        case "cosine":
            done = jnp.clip((step - config.warmup) / left, 0, 1)
            shape = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        case "wsd":
            falling = jnp.maximum(steps * config.decay_share, 1)
            done = jnp.clip((step - (steps - falling)) / falling, 0, 1)
            shape = 1 - (1 - config.final) * done
        case _:
            shape = jnp.float32(1)
    return warm * shape


def is_matrix(path: str, array: jax.Array) -> bool:
    """Whether a parameter maps one width to another: what Muon moves and weight decay shrinks."""
    return array.ndim >= 2 and not _TABLES.search(path)


def trainable(path: str, trains: Literal["all", "attention"] | str) -> bool:
    """Whether a stage that trains `trains` moves the parameter at `path`."""
    return trains == "all" or bool(_ATTENTION.search(path))


def build(config: Optimizer) -> optax.GradientTransformation:
    """The rule at its peak rates, over a flat dict of parameters; the caller scales updates by `factor`."""

    def decayed(params: Params) -> dict[str, bool]:
        return {path: is_matrix(path, array) for path, array in params.items()}

    match config.rule:
        case "adamw":
            rule = optax.adamw(
                config.rate,
                config.beta1,
                config.beta2,
                config.eps,
                weight_decay=config.weight_decay,
                mask=decayed,
            )
        case "lion":
            rule = optax.lion(
                config.rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decayed
            )
        case _:
            rule = muon(
                config.rate,
                weight_decay=config.weight_decay,
                adam_b1=config.beta1,
                adam_b2=config.beta2,
                eps=config.eps,
                adam_learning_rate=config.adam_rate or config.rate,
                muon_weight_dimension_numbers=_matrix_axes,
            )
    return _lenient(optax.chain(optax.clip_by_global_norm(config.clip), rule) if config.clip else rule)


def _lenient(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets optax mix dtypes and ranks as it was written to, where the rest of the program may not."""

    def update(gradient, state, params=None):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return rule.update(gradient, state, params)

    return optax.GradientTransformation(rule.init, update)


def _matrix_axes(params: Params) -> dict[str, MuonDimensionNumbers | None]:
    """Which axes of each parameter are the rows and columns of its map; None: Adam's.

    Axes before the last two count experts. Where optax asks again inside its own partition, parameters that
    are not Muon's have become empty nodes.
    """
    return {
        path: MuonDimensionNumbers(array.ndim - 2, array.ndim - 1)
        if hasattr(array, "ndim") and is_matrix(path, array)
        else None
        for path, array in params.items()
    }


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(int(np.prod(array.shape)) for array in params.values())
