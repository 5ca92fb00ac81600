"""Attention of one layer: its own queries against the keys and values of the layer that owns them.

An owner has the projections q, k, v, o. A reader has q and o, and reads the owner's keys as stored:
normalized and rotated once. Source: MixAttention (arXiv 2409.15012), section 3.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, D model width.
"""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from mixattn.layers import Norm, linear_map
from mixattn.rope import RopeTable, apply_rope
from mixattn.spec import Layer, ModelConfig

type ReadKV = Callable[[jax.Array], jax.Array]  # q_BTNH -> out_BTNH


class Attention(nnx.Module):
    """Parameters: q, o; k and v if the layer owns K/V; q_norm and k_norm with `qk_norm`.

    Quantised, `qkv` takes the place of q, k and v: its rows are the channels of q, then of k, then of v.
    """

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.widths = (heads, kv_heads)
        linear = functools.partial(linear_map, config, rngs)
        plain, owns = not config.quantize, layer.owns
        self.q = linear(config.d_model, heads, bias=config.qkv_bias) if plain else None
        self.k = linear(config.d_model, kv_heads, bias=config.qkv_bias) if plain and owns else None
        self.v = linear(config.d_model, kv_heads, bias=config.qkv_bias) if plain and owns else None
        width = heads + 2 * kv_heads * owns
        self.qkv = None if plain else linear(config.d_model, width, bias=config.qkv_bias)
        self.o = linear(heads, config.d_model, bias=config.out_bias, residual=True)
        self.owns = layer.owns
        self.by_head = by_head = config.qk_norm_by_head
        q_width, k_width = (config.head_dim, config.head_dim) if by_head else (heads, kv_heads)
        self.q_norm = Norm(q_width, config, norm="rms") if config.qk_norm else None
        self.k_norm = Norm(k_width, config, norm="rms") if config.qk_norm and layer.owns else None

    def keys_values(self, x_BTD: jax.Array, rope: RopeTable | None) -> tuple[jax.Array, jax.Array]:
        """k_BTKH (normalized, rotated) and v_BTKH.

        Raises:
          ValueError: the layer is a reader.
        """
        if not self.owns:
            raise ValueError("a reader layer has no K/V projections; call the layer that it reads")
        k_BTF, v_BTF = self._keys_values(x_BTD)
        k_BTKH = self._split_heads(k_BTF, self.k_norm)
        return apply_rope(k_BTKH, rope), self._split_heads(v_BTF)

    def __call__(self, x_BTD: jax.Array, rope: RopeTable | None, read_kv: ReadKV) -> jax.Array:
        """out_BTD; `read_kv` attends to the owner's keys and values wherever they are stored.

        It may return fewer tokens than it gets; those go on.
        """
        return self.output(read_kv(self.queries(x_BTD, rope)))

    def queries(self, x_BTD: jax.Array, rope: RopeTable | None) -> jax.Array:
        """q_BTNH, normalized and rotated."""
        return apply_rope(self._split_heads(self._queries(x_BTD), self.q_norm), rope)

    def output(self, out_BTNH: jax.Array) -> jax.Array:
        """out_BTD of what the queries read."""
        return self.o(out_BTNH.reshape(*out_BTNH.shape[:2], -1))

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        # Of the same input this and `_keys_values` are one product: XLA computes equal expressions once.
        if self.qkv is not None:
            return self.qkv(x_BTD)[..., : self.widths[0]]
        assert self.q is not None
        return self.q(x_BTD)

    def _keys_values(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.qkv is not None:
            heads, kv_heads = self.widths
            kv_BTF = self.qkv(x_BTD)[..., heads:]
            return kv_BTF[..., :kv_heads], kv_BTF[..., kv_heads:]
        assert self.k is not None
        assert self.v is not None
        return self.k(x_BTD), self.v(x_BTD)

    def _split_heads(self, y_BTF: jax.Array, norm: Norm | None = None) -> jax.Array:
        """[B, T, heads, H], normalized by head or before the split."""
        if norm is not None and not self.by_head:
            y_BTF, norm = norm(y_BTF), None
        y_BTNH = y_BTF.reshape(*y_BTF.shape[:2], -1, self.head_dim)
        return y_BTNH if norm is None else norm(y_BTNH)
