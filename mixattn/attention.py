"""Attention of one layer: its own queries against the keys and values of the layer that owns them.

An owner has the projections q, k, v, o. A reader has q and o, and reads the owner's keys as stored:
normalized and rotated once. Source: MixAttention (arXiv 2409.15012), section 3.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, D model width.
"""

from collections.abc import Callable

import jax
from flax import nnx

from mixattn.layers import Linear, Norm
from mixattn.rope import RopeTable, apply_rope
from mixattn.spec import Layer, ModelConfig

type ReadKV = Callable[[jax.Array], jax.Array]  # q_BTNH -> out_BTNH


class Attention(nnx.Module):
    """Parameters: q, o; k and v if the layer owns K/V; q_norm and k_norm with `qk_norm`."""

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = Linear(config.d_model, heads, config, rngs, bias=config.qkv_bias)
        self.k = Linear(config.d_model, kv_heads, config, rngs, bias=config.qkv_bias) if layer.owns else None
        self.v = Linear(config.d_model, kv_heads, config, rngs, bias=config.qkv_bias) if layer.owns else None
        self.o = Linear(heads, config.d_model, config, rngs, bias=config.out_bias, residual=True)
        self.by_head = by_head = config.qk_norm_by_head
        q_width, k_width = (config.head_dim, config.head_dim) if by_head else (heads, kv_heads)
        self.q_norm = Norm(q_width, config, norm="rms") if config.qk_norm else None
        self.k_norm = Norm(k_width, config, norm="rms") if config.qk_norm and layer.owns else None

    def keys_values(self, x_BTD: jax.Array, rope: RopeTable | None) -> tuple[jax.Array, jax.Array]:
        """k_BTKH (normalized, rotated) and v_BTKH.

        Raises:
          ValueError: the layer is a reader.
        """
        if self.k is None or self.v is None:
            raise ValueError("a reader layer has no K/V projections; call the layer that it reads")
        k_BTKH = self._split_heads(self.k(x_BTD), self.k_norm)
        return apply_rope(k_BTKH, rope), self._split_heads(self.v(x_BTD))

    def __call__(self, x_BTD: jax.Array, rope: RopeTable | None, read_kv: ReadKV) -> jax.Array:
        """out_BTD; `read_kv` attends to the owner's keys and values wherever they are stored.

        It may return fewer tokens than it gets; those go on.
        """
        q_BTNH = self._split_heads(self.q(x_BTD), self.q_norm)
        out_BTNH = read_kv(apply_rope(q_BTNH, rope))
        return self.o(out_BTNH.reshape(*out_BTNH.shape[:2], -1))

    def _split_heads(self, y_BTF: jax.Array, norm: Norm | None = None) -> jax.Array:
        """[B, T, heads, H], normalized by head or before the split."""
        if norm is not None and not self.by_head:
            y_BTF, norm = norm(y_BTF), None
        y_BTNH = y_BTF.reshape(*y_BTF.shape[:2], -1, self.head_dim)
        return y_BTNH if norm is None else norm(y_BTNH)
