"""A mixture-of-experts feed-forward layer: route, sort, grouped matmul, combine.

    gates = the k largest of softmax(x W_router), renormalized;    y = sum of gate_e * expert_e(x)

The router computes in float32 at least, whatever the dtype of the weights: bfloat16 logits would choose
other experts for some tokens. Without a capacity no token is dropped. With one, an expert drops the tokens
beyond it, in token order.

Source: routing as in Mixtral (arXiv 2401.04088), equation 1; load-balance loss of Switch (arXiv 2101.03961),
equation 4; z-loss of ST-MoE (arXiv 2202.08906), equation 5.

Axes: X tokens, D model width, E experts, F their width, k experts of a token, M = X k rows sorted by expert.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.initial import normal
from mixattn.int8_layers import Int8Experts
from mixattn.layers import activate
from mixattn.spec import ModelConfig
from pallas_kernels.grouped import grouped_matmul
from pallas_kernels.typing import accumulator_dtype


class Route(NamedTuple):
    """Attributes:
    expert_Xk, gate_Xk: chosen experts, best first (the lower index wins ties), and their float32 weights.
    p_XE, logits_XE: router probabilities and logits, float32.
    """

    expert_Xk: jax.Array
    gate_Xk: jax.Array
    p_XE: jax.Array
    logits_XE: jax.Array


class Load(NamedTuple):
    """Load-balance statistics of a mixture layer; means over real tokens.

    Attributes:
      balance: E sum_e f_e P_e, where f_e is the share of choices of expert e and P_e its mean probability; 1
        when uniform. Its gradient flows through P only.
      z: mean squared log-sum-exp of the router's logits.
      share_E: f.
    """

    balance: jax.Array
    z: jax.Array
    share_E: jax.Array


class MoE(nnx.Module):
    """Parameters: router [D, E]; gate, up [E, D, F] (gate only if gated); down [E, F, D].

    Quantised, `gate_up` [E, D, 2F] in place of gate and up, the gate's channels first.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        E, D, F = config.n_experts, config.d_model, config.d_ff
        self.k, self.order, self.capacity_factor = (
            config.experts_per_token,
            config.router_order,
            config.capacity_factor,
        )
        self.activation = config.activation
        self.router = normal(rngs, (D, E), D**-0.5, config.dtype)
        self.gated, self.experts, down_std = config.gated, E, (2 * config.n_layers * F) ** -0.5
        plain, wide = not config.quantize, F * (1 + config.gated)
        self.gate = normal(rngs, (E, D, F), D**-0.5, config.dtype) if plain and config.gated else None
        self.up = normal(rngs, (E, D, F), D**-0.5, config.dtype) if plain else None
        self.gate_up = None if plain else Int8Experts((E, D, wide), D**-0.5, config, rngs)
        self.down: nnx.Param | Int8Experts = (
            normal(rngs, (E, F, D), down_std, config.dtype)
            if plain
            else Int8Experts((E, F, D), down_std, config, rngs)
        )

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array | None = None) -> tuple[jax.Array, Load]:
        """y_BTD, and the load over the tokens that are not padding (`real_BT`; None = all)."""
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        route = self.route(x_XD)
        real_X = jnp.ones(x_XD.shape[0], bool) if real_BT is None else real_BT.reshape(-1)
        y_XD = self.with_capacity(x_XD, route) if self.capacity_factor else self.dropless(x_XD, route)
        return y_XD.reshape(x_BTD.shape), load(route, real_X)

    def route(self, x_XD: jax.Array) -> Route:
        """Each token's experts and gates."""
        acc_dtype = accumulator_dtype(x_XD.dtype)
        logits_XE = jnp.dot(x_XD.astype(acc_dtype), self.router[...].astype(acc_dtype))
        p_XE = jax.nn.softmax(logits_XE, axis=-1)
        if self.order == "topk_softmax":
            best_Xk, expert_Xk = jax.lax.top_k(logits_XE, self.k)
            return Route(expert_Xk, jax.nn.softmax(best_Xk, axis=-1), p_XE, logits_XE)
        gate_Xk, expert_Xk = jax.lax.top_k(p_XE, self.k)
        if self.order == "softmax_topk":
            gate_Xk /= jnp.sum(gate_Xk, axis=-1, keepdims=True)
        return Route(expert_Xk, gate_Xk, p_XE, logits_XE)

    def dropless(self, x_XD: jax.Array, route: Route) -> jax.Array:
        """y_XD: sorts rows by expert, runs grouped matmuls, and restores the order."""
        expert_M = route.expert_Xk.reshape(-1)
        order_M = jnp.argsort(expert_M, stable=True)
        sizes_E = jnp.bincount(expert_M, length=self.experts).astype(jnp.int32)
        x_MD = x_XD[order_M // self.k]
        if isinstance(self.down, Int8Experts):
            y_MD = self._int8_rows(x_MD, sizes_E, expert_M[order_M])
        else:
            assert self.up is not None
            up_MF = grouped_matmul(x_MD, self.up[...], sizes_E)
            gate_MF = None if self.gate is None else grouped_matmul(x_MD, self.gate[...], sizes_E)
            y_MD = grouped_matmul(self._activate(gate_MF, up_MF), self.down[...], sizes_E)
        return self._combine(y_MD[jnp.argsort(order_M)], route.gate_Xk)

    def _int8_rows(self, x_MD: jax.Array, sizes_E: jax.Array, expert_M: jax.Array) -> jax.Array:
        assert self.gate_up is not None
        assert isinstance(self.down, Int8Experts)
        both_MF = self.gate_up.grouped(x_MD, sizes_E, expert_M)
        return self.down.grouped(self._activate(*self._halves(both_MF)), sizes_E, expert_M)

    def _halves(self, both: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """gate and up of `gate_up`'s output."""
        if not self.gated:
            return None, both
        F = both.shape[-1] // 2
        return both[..., :F], both[..., F:]

    def with_capacity(self, x_XD: jax.Array, route: Route) -> jax.Array:
        """y_XD: each expert takes its first ceil(factor k X / E) tokens and drops the others."""
        X, E = x_XD.shape[0], self.experts
        capacity = min(X, math.ceil(self.capacity_factor * self.k * X / E))
        expert_M = route.expert_Xk.reshape(-1)
        count_ME = jnp.cumsum(jax.nn.one_hot(expert_M, E, dtype=jnp.int32), axis=0)
        rank_M = jnp.take_along_axis(count_ME, expert_M[:, None], axis=1)[:, 0] - 1
        slot_M = jnp.where(rank_M < capacity, expert_M * capacity + rank_M, E * capacity)
        x_MD = jnp.repeat(x_XD, self.k, axis=0)
        x_ECD = jnp.zeros((E * capacity, x_XD.shape[1]), x_XD.dtype).at[slot_M].set(x_MD, mode="drop")
        x_ECD = x_ECD.reshape(E, capacity, -1)
        y_ECD = self._slots(x_ECD)
        y_MD = y_ECD.reshape(E * capacity, -1).at[slot_M].get(mode="fill", fill_value=0)
        return self._combine(y_MD, route.gate_Xk)

    def _slots(self, x_ECD: jax.Array) -> jax.Array:
        """y_ECD of each expert's tokens."""
        if isinstance(self.down, Int8Experts):
            assert self.gate_up is not None
            return self.down.slots(self._activate(*self._halves(self.gate_up.slots(x_ECD))))
        assert self.up is not None
        up_ECF = jnp.einsum("ECD,EDF->ECF", x_ECD, self.up[...])
        gate_ECF = None if self.gate is None else jnp.einsum("ECD,EDF->ECF", x_ECD, self.gate[...])
        return jnp.einsum("ECF,EFD->ECD", self._activate(gate_ECF, up_ECF), self.down[...])

    def _activate(self, gate: jax.Array | None, up: jax.Array) -> jax.Array:
        return activate(up, self.activation) if gate is None else activate(gate, self.activation) * up

    def _combine(self, y_MD: jax.Array, gate_Xk: jax.Array) -> jax.Array:
        y_XkD = y_MD.reshape(*gate_Xk.shape, -1)
        return jnp.sum(y_XkD * gate_Xk[..., None].astype(y_MD.dtype), axis=1)


def load(route: Route, real_X: jax.Array) -> Load:
    """The auxiliary losses and the experts' shares, over real tokens."""
    E, k = route.p_XE.shape[1], route.expert_Xk.shape[1]
    weight_X = real_X.astype(route.p_XE.dtype)
    weight_X /= jnp.maximum(jnp.sum(weight_X), 1)
    chosen_XE = jnp.sum(jax.nn.one_hot(route.expert_Xk, E, dtype=weight_X.dtype), axis=1)
    share_E = jax.lax.stop_gradient(weight_X @ chosen_XE) / k
    balance = E * jnp.sum(share_E * (weight_X @ route.p_XE))
    z = weight_X @ jnp.square(jax.nn.logsumexp(route.logits_XE, axis=-1))
    return Load(balance, z, share_E)
