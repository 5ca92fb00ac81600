"""One layer's attention: its own queries, and keys and values of the layer that owns them.

An owner has q, k, v, o; a reader has q and o only and reads the owner's keys as stored: normed and rotated
once.
Source: MixAttention (arXiv 2409.15012), section 3.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, D model width.
"""

from collections.abc import Callable

import jax
from flax import nnx

from mixattn.layers import Linear, Norm, RopeTable, apply_rope
from mixattn.spec import Layer, ModelConfig


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = Linear(config.d_model, heads, config, rngs, bias=config.qkv_bias)
        self.k = Linear(config.d_model, kv_heads, config, rngs, bias=config.qkv_bias) if layer.owns else None
        self.v = Linear(config.d_model, kv_heads, config, rngs, bias=config.qkv_bias) if layer.owns else None
        self.o = Linear(heads, config.d_model, config, rngs, bias=config.out_bias, residual=True)
        self.q_norm = Norm(config.head_dim, config, norm="rms") if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config, norm="rms") if config.qk_norm and layer.owns else None

    def keys_values(self, x_BTD: jax.Array, turn: RopeTable | None) -> tuple[jax.Array, jax.Array]:
        """k_BTKH (normed, rotated) and v_BTKH. Owners only."""
        if self.k is None or self.v is None:
            raise ValueError("a reader has no keys of its own; ask the layer it reads")
        k_BTKH, v_BTKH = self._split(self.k(x_BTD)), self._split(self.v(x_BTD))
        if self.k_norm is not None:
            k_BTKH = self.k_norm(k_BTKH)
        return apply_rope(k_BTKH, turn), v_BTKH

    def __call__(
        self, x_BTD: jax.Array, turn: RopeTable | None, read: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """out_BTD; `read` answers q_BTNH with out_BTNH from wherever the owner's keys and values lie."""
        q_BTNH = self._split(self.q(x_BTD))
        if self.q_norm is not None:
            q_BTNH = self.q_norm(q_BTNH)
        out_BTNH = read(apply_rope(q_BTNH, turn))
        return self.o(out_BTNH.reshape(*x_BTD.shape[:2], -1))

    def _split(self, y_BTF: jax.Array) -> jax.Array:
        return y_BTF.reshape(*y_BTF.shape[:2], -1, self.head_dim)
