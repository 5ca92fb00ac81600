"""Recovers a rewired model layer by layer from its original's residual streams, in closed form.

From the bottom up, each layer is fitted on the inputs that the already fitted layers below give it, so that
it also corrects what they got wrong: the owner's K/V to the mean of its group's keys and values, the queries
of a shared K/V to the original's scores, then the output projection and the feed-forward's last one to the
original's stream. No gradient, no step size; one pass over the rows.

Axes: see `closed_form`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mixattn import ModelConfig, Transformer
from mixattn.model import Block
from mixattn.rope import RopeTable, rope_tables
from mixattn.spec import Layer
from train.experiments import closed_form
from train.experiments.closed_form import Attended, kernel_of
from train.experiments.teacher import StoredStreams


class Strength(NamedTuple):
    """Ridge strengths, as parts of the inputs' mean square.

    Attributes:
      attention: of k, v, q and o.
      down: of the feed-forward's last projection, which has the most inputs.
    """

    attention: float = 1e-3
    down: float = 1e-2


STRENGTH = Strength()


class LayerFit(NamedTuple):
    """Median squared error of a stream relative to the original's: after attention, and after the block."""

    layer: int
    middle: float
    output: float


def recover(
    student: Transformer,
    original: Transformer,
    streams: StoredStreams,
    *,
    query_rows: int,
    strength: Strength = STRENGTH,
    report: Callable[[LayerFit], None] = lambda fit: None,
) -> list[LayerFit]:
    """Fits the student in place.

    Args:
      original: the model before rewiring, whose streams these are.
      query_rows: rows that the queries are fitted on (their targets cost the most to compute).
      report: called after each layer.

    Raises:
      ValueError: a model with parts that the fits do not know, or other streams than this model's.
    """
    _check(student.config, streams)
    fitting = _Fitting(student, original, streams, query_rows, strength)
    x_RTD, fits = streams.input(0), []
    for layer in student.config.layers:
        x_RTD, fit = fitting.layer(layer, x_RTD)
        fits.append(fit)
        report(fit)
    return fits


class _Fitting:
    """The fits of one pass, and the keys and values of the owners below."""

    def __init__(
        self,
        student: Transformer,
        original: Transformer,
        streams: StoredStreams,
        query_rows: int,
        strength: Strength,
    ):
        self._config, self._streams, self._strength = student.config, streams, strength
        self._student, self._original, self._query_rows = student, original, min(query_rows, streams.rows)
        T = streams.tokens
        self._ropes = rope_tables(student.config, jnp.arange(T)[None], student.config.rope_length or T)
        self._kv: dict[int, tuple[jax.Array, jax.Array]] = {}

    def layer(self, layer: Layer, x_RTD: jax.Array) -> tuple[jax.Array, LayerFit]:
        """Fits one layer; returns the stream after it."""
        block, rope = self._student.blocks[layer.index], self._ropes[layer.slides]
        assert rope is not None  # see _check
        group = [other.index for other in self._config.layers if other.owner == layer.owner]
        if layer.owns:
            self._fit_owner(block, layer.index, group, x_RTD)
        keys, values = self._kv[layer.owner]
        read = Attended(keys, values, closed_form.visible(layer, x_RTD.shape[1]))
        if len(group) > 1:
            self._fit_queries(block, layer.index, x_RTD, read, rope)
        middle, target = self._streams.middle(layer.index), self._streams.input(layer.index + 1)
        kernel, x_RTD = closed_form.fit_output(
            self._config, block, x_RTD, middle, read, rope, self._strength.attention
        )
        kernel_of(block.attention.o)[...] = kernel
        middle_error = closed_form.relative_error(x_RTD, middle)
        kernel, x_RTD = closed_form.fit_down(block, x_RTD, target, self._strength.down)
        kernel_of(block.ffn.down)[...] = kernel
        output_error = closed_form.relative_error(x_RTD, target)
        return x_RTD, LayerFit(layer.index, float(middle_error), float(output_error))

    def _fit_owner(self, block: Block, owner: int, group: list[int], x_RTD: jax.Array) -> None:
        keys: jax.Array | float = 0.0
        values: jax.Array | float = 0.0
        for member in group:
            k_NF, v_NF = closed_form.project_keys_values(
                self._original.blocks[member], self._streams.input(member)
            )
            keys, values = keys + k_NF / len(group), values + v_NF / len(group)
        k, v = closed_form.fit_keys_values(
            block, x_RTD, jnp.asarray(keys), jnp.asarray(values), self._strength.attention
        )
        kernel_of(block.attention.k)[...], kernel_of(block.attention.v)[...] = k, v
        self._kv[owner] = closed_form.project_keys_values(block, x_RTD)

    def _fit_queries(
        self, block: Block, index: int, x_RTD: jax.Array, read: Attended, rope: RopeTable
    ) -> None:
        original, T = self._original.blocks[index], x_RTD.shape[1]
        wanted = []
        for row in range(self._query_rows):  # one at a time: a row's curvatures are T K G H^2 numbers
            here = slice(row * T, (row + 1) * T)
            part = Attended(read.keys_NF[here], read.values_NF[here], read.mask_TS)
            x_1TD, original_1TD = x_RTD[row : row + 1], self._streams.input(index, row)
            wanted.append(
                closed_form.wanted_queries(self._config, block, original, x_1TD, original_1TD, part, rope)
            )
        kernel_of(block.attention.q)[...] = closed_form.fit_queries(
            block, x_RTD[: self._query_rows], jnp.concatenate(wanted), self._strength.attention
        )


def _check(config: ModelConfig, streams: StoredStreams) -> None:
    """Raises ValueError for a model that is not of Llama's kind, or of another depth than the streams."""
    plain = {
        "positions": "rope",
        "quantize": "",
        "activation": "silu",
        "gated": True,
        "pre_norms": True,
        "post_norms": False,
        "qk_norm": False,
        "qkv_bias": False,
        "out_bias": False,
        "ffn_bias": False,
        "n_experts": 0,
        "attention_scale": 0.0,
        "attention_softcap": 0.0,
    }
    for name, value in plain.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(f"{name} is {found!r}; the closed-form fits know {value!r} only")
    if streams.layers != config.n_layers:
        raise ValueError(f"the streams are of {streams.layers} layers, the model has {config.n_layers}")
