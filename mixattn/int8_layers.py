"""Layers whose weights are 8-bit integers; the arithmetic is that of `pallas_kernels.int8`.

Their outputs have the dtype of their inputs. Random initialization rounds the weights that the float layer
would have; `mixattn.quantize` fills them from a float model.

Axes: D input width, F output channels, X rows, V vocabulary, E experts, M rows sorted by expert.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mixattn.initial import linear_std, normal
from mixattn.spec import ModelConfig
from pallas_kernels import int8
from pallas_kernels.grouped import grouped_matmul


class Int8Linear(nnx.Module):
    """y = x @ w + bias. Parameters: codes_FD, scale_F, bias_F."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        bias: bool = False,
        residual: bool = False,
    ):
        std = linear_std(d_in, config.n_layers, residual=residual)
        drawn = int8.quantize(normal(rngs, (d_out, d_in), std, config.dtype)[...])
        self.codes, self.scale = nnx.Param(drawn.codes), nnx.Param(drawn.scale.astype(jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out, config.dtype)) if bias else None

    def __call__(self, x: jax.Array, out_dtype: DTypeLike | None = None) -> jax.Array:
        rows = int8.quantize(x.reshape(-1, x.shape[-1]))
        y_XF = int8.matmul(rows, int8.Codes(self.codes[...], self.scale[...]), out_dtype or x.dtype)
        if self.bias is not None:
            y_XF += self.bias[...][None].astype(y_XF.dtype)
        return y_XF.reshape(*x.shape[:-1], y_XF.shape[1])


class Int8Table(nnx.Module):
    """Token embeddings, which may be the head too: one scale per token. Parameters: codes_VD, scale_V."""

    def __init__(self, config: ModelConfig, std: float, rngs: nnx.Rngs):
        drawn = int8.quantize(normal(rngs, (config.vocab_size, config.d_model), std, config.dtype)[...])
        self.codes, self.scale = nnx.Param(drawn.codes), nnx.Param(drawn.scale.astype(jnp.float32))

    def rows(self, tokens: jax.Array, dtype: DTypeLike) -> jax.Array:
        """The embeddings of tokens of any shape, in `dtype`."""
        return int8.dequantize(int8.Codes(self.codes[...][tokens], self.scale[...][tokens])).astype(dtype)

    def scores(self, x_XD: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Each row times every embedding: logits_XV."""
        return int8.matmul(int8.quantize(x_XD), int8.Codes(self.codes[...], self.scale[...]), dtype)


class Int8Experts(nnx.Module):
    """One matrix per expert. Parameters: codes_EDF, scale_EF."""

    def __init__(self, shape_EDF: tuple[int, int, int], std: float, config: ModelConfig, rngs: nnx.Rngs):
        drawn = int8.quantize(normal(rngs, shape_EDF, std, config.dtype)[...], axis=1)
        self.codes, self.scale = nnx.Param(drawn.codes), nnx.Param(drawn.scale.astype(jnp.float32))

    def grouped(self, x_MD: jax.Array, sizes_E: jax.Array, expert_M: jax.Array) -> jax.Array:
        """y_MF of rows that are sorted by expert."""
        rows = int8.quantize(x_MD)
        sums_MF = grouped_matmul(rows.codes, self.codes[...], sizes_E)
        scale_EF = self.scale[...].astype(rows.scale.dtype)
        y_MF = sums_MF.astype(rows.scale.dtype) * rows.scale[:, None] * scale_EF[expert_M]
        return y_MF.astype(x_MD.dtype)

    def slots(self, x_ECD: jax.Array) -> jax.Array:
        """y_ECF of C rows for each expert."""
        rows = int8.quantize(x_ECD)
        sums_ECF = int8.batched_sums(rows.codes, self.codes[...])
        scale_EF = self.scale[...].astype(rows.scale.dtype)
        y_ECF = sums_ECF.astype(rows.scale.dtype) * rows.scale[..., None] * scale_EF[:, None]
        return y_ECF.astype(x_ECD.dtype)
