"""Basic layers: linear maps, norms, token embedding, dense feed-forward.

Linear maps flatten their input to [B*T, D] first: XLA's CPU matmul is up to twice as fast on two axes as on
three. Weights are initialized to N(0, 1 / fan_in); those that write into the residual stream are smaller by
sqrt(2 n_layers).

Axes: B rows, T tokens, D model width, F output width, V vocabulary, X = B*T.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mixattn.initial import linear_std, normal
from mixattn.int8_layers import Int8Linear, Int8Table
from mixattn.spec import ModelConfig
from pallas_kernels.typing import accumulator_dtype


class Linear(nnx.Module):
    """y = x @ kernel + bias, over the last axis."""

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
        """`residual`: the output is added to the residual stream."""
        std = linear_std(d_in, config.n_layers, residual=residual)
        self.kernel = normal(rngs, (d_in, d_out), std, config.dtype)
        self.bias = nnx.Param(jnp.zeros(d_out, config.dtype)) if bias else None

    def __call__(self, x: jax.Array, out_dtype: DTypeLike | None = None) -> jax.Array:
        kernel = self.kernel[...]
        y_XF = jnp.dot(x.reshape(-1, x.shape[-1]), kernel, preferred_element_type=out_dtype)
        if self.bias is not None:
            y_XF += self.bias[...][None]
        return y_XF.reshape(*x.shape[:-1], kernel.shape[1])


def linear_map(
    config: ModelConfig,
    rngs: nnx.Rngs,
    d_in: int,
    d_out: int,
    *,
    bias: bool = False,
    residual: bool = False,
) -> Linear | Int8Linear:
    """A linear map with weights as `config` stores them."""
    kind = Int8Linear if config.quantize else Linear
    return kind(d_in, d_out, config, rngs, bias=bias, residual=residual)


class Norm(nnx.Module):
    """RMS norm, or LayerNorm with bias, over the last axis, computed in float32 (float64 in float64).

    With `norm_unit_offset` the stored gain w acts as 1 + w and multiplies before the cast to the input's
    dtype (Gemma); otherwise it multiplies after the cast (Llama).
    """

    def __init__(self, width: int, config: ModelConfig, *, norm: str | None = None):
        layer_norm = (norm or config.norm) == "layer"
        self.eps, self.unit_offset = config.norm_eps, config.norm_unit_offset
        init = jnp.zeros if self.unit_offset else jnp.ones
        self.gain = nnx.Param(init(width, config.dtype))
        self.bias = nnx.Param(jnp.zeros(width, config.dtype)) if layer_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x_acc, axes = x.astype(accumulator_dtype(x.dtype)), (1,) * (x.ndim - 1) + (-1,)
        gain = self.gain[...].reshape(axes)
        if self.bias is not None:
            x_acc -= jnp.mean(x_acc, axis=-1, keepdims=True)
        x_acc *= jax.lax.rsqrt(jnp.mean(jnp.square(x_acc), axis=-1, keepdims=True) + self.eps)
        if self.unit_offset:
            return (x_acc * (1 + gain.astype(x_acc.dtype))).astype(x.dtype)
        y = x_acc.astype(x.dtype) * gain
        return y if self.bias is None else y + self.bias[...].reshape(axes)


class Embedding(nnx.Module):
    """Token embeddings times `embedding_scale`, plus learned position embeddings if configured.

    A tied table, which is also the output head, is initialized with std d_model**-0.5. An untied one is
    initialized with std 1 / embedding_scale, so that scaled rows have unit variance before the first norm.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.scale, self.offset = config.embedding_scale, config.position_offset
        std = config.d_model**-0.5 if config.tied else 1.0 / config.embedding_scale
        self.table: nnx.Param | Int8Table = (
            Int8Table(config, std, rngs)
            if config.quantize
            else normal(rngs, (config.vocab_size, config.d_model), std, config.dtype)
        )
        self.dtype = config.dtype
        rows = (config.max_positions + config.position_offset, config.d_model)
        self.positions = normal(rngs, rows, std, config.dtype) if config.positions == "learned" else None

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None) -> jax.Array:
        if isinstance(self.table, Int8Table):
            x_BTD = self.table.rows(tokens_BT, self.dtype)
        else:
            x_BTD = self.table[...][tokens_BT]
        if self.scale != 1:
            x_BTD *= jnp.asarray(self.scale, x_BTD.dtype)
        if self.positions is not None:
            if positions_BT is None:
                positions_BT = jnp.arange(tokens_BT.shape[-1])[None]
            # Left padding has negative positions; what it embeds to is masked later.
            x_BTD += self.positions[...][jnp.maximum(positions_BT + self.offset, 0)]
        return x_BTD

    def scores(self, x_XD: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Logits_XV of the tied head: each row times every token's embedding."""
        if isinstance(self.table, Int8Table):
            return self.table.scores(x_XD, dtype)
        return jnp.einsum("XD,VD->XV", x_XD, self.table[...], preferred_element_type=dtype)


def activate(x: jax.Array, name: str) -> jax.Array:
    """Applies an activation of `mixattn.spec.config.ACTIVATIONS`."""
    match name:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=True)
        case "gelu_exact":
            return jax.nn.gelu(x, approximate=False)
        case "relu":
            return jax.nn.relu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))
    raise ValueError(f"unknown activation {name!r}")


class FeedForward(nnx.Module):
    """down(activation(gate x) * up x), or down(activation(up x)) if not gated.

    Parameters: gate, up, down; quantised, `gate_up` in place of the first two: its rows are the gate's
    channels, then the others.
    """

    def __init__(self, config: ModelConfig, d_ff: int, rngs: nnx.Rngs):
        bias, self.activation, self.gated = config.ffn_bias, config.activation, config.gated
        linear, plain = functools.partial(linear_map, config, rngs, bias=bias), not config.quantize
        self.gate = linear(config.d_model, d_ff) if plain and config.gated else None
        self.up = linear(config.d_model, d_ff) if plain else None
        self.gate_up = None if plain else linear(config.d_model, d_ff * (1 + config.gated))
        self.down = linear(d_ff, config.d_model, residual=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = self.expanded(x)
        if gate is None:
            return self.down(activate(up, self.activation))
        return self.down(activate(gate, self.activation) * up)

    def expanded(self, x: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """gate x, if gated, and up x."""
        if self.gate_up is not None:
            both = self.gate_up(x)
            width = both.shape[-1] // 2
            return (both[..., :width], both[..., width:]) if self.gated else (None, both)
        assert self.up is not None
        return None if self.gate is None else self.gate(x), self.up(x)
