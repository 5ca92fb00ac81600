"""Optimizers: learning-rate schedule, gradient clipping, per-parameter update, weight decay, freezing.

Parameters are a flat dict from path ("blocks.3.attention.q.kernel") to array. Every per-parameter choice is
made from the path and the shape.
"""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from train.objective import Params

_SCHEDULES = ("linear", "cosine", "wsd", "constant")
_OPTIMIZERS = ("adamw", "lion", "muon")
# Embedding and head hold one row per token. They do not map widths, so Muon's orthogonal update does not fit.
_TABLES = re.compile(r"(^|\.)(embed\w*|lm_head|positions?)(\.|$)")
# Parameters of `trainable="attention"`: the projections and norms of attention.
_ATTENTION = re.compile(r"(^|\.)attention(\.|$)|attention_norm")


@dataclass
class OptimizerConfig:
    """The optimizer and its learning rates.

    Attributes:
      name: "adamw", "lion" or "muon". Muon updates the matrices; embedding, head, norms and biases use Adam.
      learning_rate: peak learning rate; with "muon", of the matrices.
      adam_learning_rate: peak learning rate of the Adam parameters with "muon" (0 = `learning_rate`).
      beta1, beta2: decay rates of Adam's and Lion's averages.
      eps: added to Adam's denominator.
      schedule: after a linear warm-up of `warmup` steps from 0: "linear" or "cosine" decay to
        `final_lr_ratio * learning_rate`, "constant", or "wsd": constant, then linear decay to
        `final_lr_ratio * learning_rate` over the last `decay_share` of the steps.
      warmup: steps of linear warm-up.
      final_lr_ratio: learning rate at the end, as a share of the peak.
      decay_share: share of the steps in which "wsd" decays.
      clip: maximum global gradient norm (0 = no clipping).
      weight_decay: applied to matrices only, never to norms, biases and embeddings.
    """

    name: str = "muon"
    learning_rate: float = 0.02
    adam_learning_rate: float = 0.004
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    schedule: str = "linear"
    warmup: int = 30
    final_lr_ratio: float = 0.02
    decay_share: float = 0.3
    clip: float = 0.0
    weight_decay: float = 0.0

    def check(self) -> None:
        if self.name not in _OPTIMIZERS:
            raise ValueError(f"optimizer.name is {self.name!r}; it must be one of {', '.join(_OPTIMIZERS)}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(
                f"optimizer.schedule is {self.schedule!r}; it must be one of {', '.join(_SCHEDULES)}"
            )
        for name in (
            "learning_rate",
            "adam_learning_rate",
            "clip",
            "weight_decay",
            "warmup",
            "final_lr_ratio",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it cannot be negative")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"optimizer.decay_share is {self.decay_share}; it must be in (0, 1]")


def lr_scale(config: OptimizerConfig, step: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns the factor on the peak learning rates at `step` (from 0) of `steps`; float32 scalar.

    Both are arrays, so that a stage whose length is measured first is compiled once.
    """
    step, steps = (x.astype(jnp.float32) for x in (step, steps))
    warm = jnp.minimum((step + 1) / config.warmup, 1.0) if config.warmup else jnp.float32(1)
    decay_steps = jnp.maximum(steps - config.warmup, 1)
    match config.schedule:
        case "linear":
            done = jnp.clip((step - config.warmup) / decay_steps, 0, 1)
            shape = 1 - (1 - config.final_lr_ratio) * done
        case "cosine":
            done = jnp.clip((step - config.warmup) / decay_steps, 0, 1)
            shape = config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        case "wsd":
            decay_steps = jnp.maximum(steps * config.decay_share, 1)
            done = jnp.clip((step - (steps - decay_steps)) / decay_steps, 0, 1)
            shape = 1 - (1 - config.final_lr_ratio) * done
        case _:
            shape = jnp.float32(1)
    return warm * shape


def is_matrix(path: str, array: jax.Array) -> bool:
    """Whether a parameter maps one width to another. Muon and weight decay apply to these."""
    return array.ndim >= 2 and not _TABLES.search(path)


def is_trainable(path: str, trainable: str) -> bool:
    """Whether a stage that trains `trainable` ("all" or "attention") updates the parameter at `path`."""
    return trainable == "all" or bool(_ATTENTION.search(path))


def build(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the optimizer at its peak learning rates; the caller multiplies updates by `lr_scale`."""

    def decayed(params: Params) -> dict[str, bool]:
        return {path: is_matrix(path, array) for path, array in params.items()}

    match config.name:
        case "adamw":
            tx = optax.adamw(
                config.learning_rate,
                config.beta1,
                config.beta2,
                config.eps,
                weight_decay=config.weight_decay,
                mask=decayed,
            )
        case "lion":
            tx = optax.lion(
                config.learning_rate,
                config.beta1,
                config.beta2,
                weight_decay=config.weight_decay,
                mask=decayed,
            )
        case _:
            tx = muon(
                config.learning_rate,
                weight_decay=config.weight_decay,
                adam_b1=config.beta1,
                adam_b2=config.beta2,
                eps=config.eps,
                adam_learning_rate=config.adam_learning_rate or config.learning_rate,
                muon_weight_dimension_numbers=_matrix_axes,
            )
    return with_promotion(optax.chain(optax.clip_by_global_norm(config.clip), tx) if config.clip else tx)


def with_promotion(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Allows dtype and rank promotion inside optax, which needs it; the rest of the program forbids it."""

    def update(
        gradient: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return tx.update(gradient, state, params)

    return optax.GradientTransformation(tx.init, update)


def _matrix_axes(params: Params) -> dict[str, MuonDimensionNumbers | None]:
    """Returns the row and column axes of each matrix; None selects Adam.

    Axes before the last two count experts. Optax calls this again inside its own partition, where parameters
    that Muon does not update are empty nodes without `ndim`.
    """
    return {
        path: MuonDimensionNumbers(array.ndim - 2, array.ndim - 1)
        if hasattr(array, "ndim") and is_matrix(path, array)
        else None
        for path, array in params.items()
    }


def count_params(params: Params) -> int:
    """Number of parameters."""
    return sum(int(np.prod(array.shape)) for array in params.values())
