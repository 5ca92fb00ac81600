"""Operands that the backends share: static options, token positions, and the axis orders of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class ScoreTransform(NamedTuple):
    """From q·k to a score: softcap · tanh(scale · q·k / softcap), or scale · q·k without a cap."""

    scale: float
    softcap: float | None


class StaticOptions(NamedTuple):
    """Options of a call that are known before it runs."""

    window: int | None
    causal: bool
    score: ScoreTransform


class TokenPositions(NamedTuple):
    """Positions and segments of queries and keys.

    Positions of None are the plain ones: keys at 0..S-1, queries the last T of them. Segments of None are a
    single document.
    """

    q_pos_BT: jax.Array | None
    k_pos_BS: jax.Array | None
    segment_q_BT: jax.Array | None
    segment_k_BS: jax.Array | None

    def token_positions(self, T: int, S: int) -> tuple[jax.Array, jax.Array]:
        """Positions of queries and keys, [B or 1, T] and [B or 1, S], int32."""
        if self.q_pos_BT is None or self.k_pos_BS is None:
            return jnp.arange(S - T, S)[None], jnp.arange(S)[None]
        return self.q_pos_BT, self.k_pos_BS

    def token_segments(self, T: int, S: int) -> tuple[jax.Array, jax.Array]:
        """Segments of queries and keys, [B or 1, T] and [B or 1, S], int32."""
        if self.segment_q_BT is None or self.segment_k_BS is None:
            return jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
        return self.segment_q_BT, self.segment_k_BS


# Saved for the backward pass: q_BTNH, k_BSKH, v_BSKH, positions, out_BTNH, lse_BTN.
type Residuals = tuple[jax.Array, jax.Array, jax.Array, TokenPositions, jax.Array, jax.Array]


def by_group(x: jax.Array, K: int) -> jax.Array:
    """[B, T, N, ...] to [B, K, T, G, ...]."""
    B, T, N = x.shape[:3]
    return jnp.moveaxis(x.reshape(B, T, K, N // K, *x.shape[3:]), 2, 1)


def by_query(x: jax.Array) -> jax.Array:
    """[B, K, T, G, ...] to [B, T, N, ...]."""
    B, K, T, G = x.shape[:4]
    return jnp.moveaxis(x, 1, 2).reshape(B, T, K * G, *x.shape[4:])


def by_head(x: jax.Array) -> jax.Array:
    """[B, S, K, H] to [B, K, S, H], and back."""
    return jnp.swapaxes(x, 1, 2)
