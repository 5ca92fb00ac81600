"""The model: embedding, blocks, final norm, head. `forward` serves training, prefill and decode.

Each layer that owns K/V writes them before any layer reads them. The cache defines both operations (see
`mixattn.cache.protocol`); a complete sequence uses `FullSequence`.

Axes: B rows, T tokens, D model width, V vocabulary, N query heads, H head size, L layers, E experts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.attention import Attention, ReadKV
from mixattn.cache import Cache, FullSequence
from mixattn.layers import Embedding, FeedForward, Norm, linear_map
from mixattn.moe import Load, MoE
from mixattn.rope import RopeTable, rope_tables
from mixattn.spec import Layer, ModelConfig
from pallas_kernels.typing import accumulator_dtype


class Forward(NamedTuple):
    """The result of `Transformer.forward`.

    Attributes:
      hidden_BTD: hidden states after the final norm; [B, 1, D] with `last_only`.
      cache: the cache including this step's tokens; None if none was given.
      aux: {} for dense models; otherwise "load_balance" and "z", means over the mixture layers, and
        "expert_load_LE", each mixture layer's share of choices per expert (see `mixattn.moe.Load`).
    """

    hidden_BTD: jax.Array
    cache: Cache | None
    aux: dict[str, jax.Array]


class Block(nnx.Module):
    """x + attention(norm x), then x + ffn(norm x); the halves can be called separately."""

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        def norm(wanted: bool) -> Norm | None:
            return Norm(config.d_model, config) if wanted else None

        self.attention_norm, self.ffn_norm = norm(config.pre_norms), norm(config.pre_norms)
        self.attention_post_norm, self.ffn_post_norm = norm(config.post_norms), norm(config.post_norms)
        self.attention = Attention(config, layer, rngs)
        if config.has_experts(layer.index):
            self.ffn: MoE | FeedForward = MoE(config, rngs)
        else:
            self.ffn = FeedForward(config, config.dense_width, rngs)

    def keys_values(self, x_BTD: jax.Array, rope: RopeTable | None) -> tuple[jax.Array, jax.Array]:
        """k_BTKH and v_BTKH of the residual stream x. Owners only."""
        return self.attention.keys_values(normed(self.attention_norm, x_BTD), rope)

    def attend(
        self,
        x_BTD: jax.Array,
        rope: RopeTable | None,
        read_kv: ReadKV,
        going_on_BTD: jax.Array | None = None,
    ) -> jax.Array:
        """The residual stream after the attention half.

        Args:
          going_on_BTD: the tokens of x that `read_kv` returns attention for, if not all.
        """
        out_BTNH = read_kv(self.queries(x_BTD, rope))
        return self.attended(x_BTD if going_on_BTD is None else going_on_BTD, out_BTNH)

    def queries(self, x_BTD: jax.Array, rope: RopeTable | None) -> jax.Array:
        """q_BTNH of the residual stream x: what `attend` does before it reads K/V."""
        return self.attention.queries(normed(self.attention_norm, x_BTD), rope)

    def attended(self, x_BTD: jax.Array, out_BTNH: jax.Array) -> jax.Array:
        """The residual stream after the attention half: what `attend` does once K/V are read."""
        return x_BTD + normed(self.attention_post_norm, self.attention.output(out_BTNH))

    def feed_forward(
        self, x_BTD: jax.Array, real_BT: jax.Array | None = None
    ) -> tuple[jax.Array, Load | None]:
        """The residual stream after the feed-forward half, and the experts' load of a mixture layer."""
        load = None
        if isinstance(self.ffn, MoE):
            y_BTD, load = self.ffn(normed(self.ffn_norm, x_BTD), real_BT)
        else:
            y_BTD = self.ffn(normed(self.ffn_norm, x_BTD))
        return x_BTD + normed(self.ffn_post_norm, y_BTD), load


def normed(norm: Norm | None, x_BTD: jax.Array) -> jax.Array:
    """The norm of x, or x where there is none."""
    return x_BTD if norm is None else norm(x_BTD)


def moe_metrics(loads: list[Load]) -> dict[str, jax.Array]:
    """The `aux` of a forward pass, from the loads of its mixture layers."""
    if not loads:
        return {}
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *loads)
    return {
        "load_balance": jnp.mean(stacked.balance),
        "z": jnp.mean(stacked.z),
        "expert_load_LE": stacked.share_E,
    }


class Transformer(nnx.Module):
    """A decoder-only language model.

    Parameters: embed.table, blocks.{i}.attention.{q,k,v,o}, blocks.{i}.ffn.{gate,up,down}, the norms,
    final_norm, and lm_head unless tied. Readers have no k and v. Mixture layers have a router too. With
    `config.quantize` see `mixattn.quantize`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs)
        self.blocks = nnx.List(Block(config, layer, rngs) for layer in config.layers)
        self.final_norm = Norm(config.d_model, config)
        self.lm_head = None if config.tied else linear_map(config, rngs, config.d_model, config.vocab_size)

    def __call__(self, tokens_BT: jax.Array, *, segment_BT: jax.Array | None = None) -> jax.Array:
        """Teacher-forced logits_BTV, as `head`. `segment_BT` separates packed documents."""
        return self.head(self.forward(tokens_BT, segment_BT=segment_BT).hidden_BTD)

    def forward(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_BT: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        remat: Callable[..., Any] | None = None,
    ) -> Forward:
        """Runs the stack over one step's tokens.

        Args:
          tokens_BT: int32.
          positions_BT: absolute positions, only without a cache; default 0..T-1. Negative positions are
            padding and are masked.
          segment_BT: only without a cache: tokens attend only to tokens of the same segment.
          cache: holds the past and stores this step's K/V; None for a complete sequence.
          last_only: return only each row's last token, as prefill needs. The last owner, after writing its
            K/V, and all layers above it then run on one token per row.
          remat: wraps each block's function of the residual stream, for example `jax.checkpoint`.

        Raises:
          ValueError: positions or segments are given together with a cache.
        """
        if cache is not None and (positions_BT is not None or segment_BT is not None):
            raise ValueError(
                "a cache determines the positions and holds one sequence per row; omit positions_BT and"
                " segment_BT"
            )
        config = self.config
        kv: Cache = FullSequence({}, positions_BT, segment_BT) if cache is None else cache
        T = tokens_BT.shape[1]
        x_BTD = self.embed(tokens_BT, kv.positions(T))
        real_BT = None if positions_BT is None or last_only else positions_BT >= 0
        last_owner = config.owners[-1] if last_only else None
        x_BTD, after, loads = run_blocks(
            config, self.blocks, config.layers, x_BTD, kv, last_owner=last_owner, real_BT=real_BT, remat=remat
        )
        new_cache = None if cache is None else after.advance(T)
        return Forward(self.final_norm(x_BTD), new_cache, moe_metrics(loads))

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], float32 (float64 in float64), of hidden states [..., D]."""
        acc_dtype = accumulator_dtype(hidden.dtype)
        if self.lm_head is not None:
            logits = self.lm_head(hidden, out_dtype=acc_dtype)
        else:
            logits = self.embed.scores(hidden.reshape(-1, hidden.shape[-1]), acc_dtype)
            logits = logits.reshape(*hidden.shape[:-1], -1)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits


def run_blocks(
    config: ModelConfig,
    blocks: Iterable[Block],
    layers: Sequence[Layer],
    x_BTD: jax.Array,
    kv: Cache,
    *,
    last_owner: int | None = None,
    real_BT: jax.Array | None = None,
    remat: Callable[..., Any] | None = None,
) -> tuple[jax.Array, Cache, list[Load]]:
    """Runs consecutive blocks over the residual stream; a whole stack, or a part of one.

    Args:
      layers: how each block attends; `kv` knows the owners by their indices.
      last_owner: once this layer has written its K/V, only each row's last token goes on (T becomes 1).
      real_BT: tokens that count for the experts' load; None = all.
      remat: wraps each block's function of the residual stream.

    Returns:
      The residual stream, the cache with what these layers wrote (not advanced), and the experts' loads.
    """
    T = x_BTD.shape[1]
    length = config.rope_length or (T if isinstance(kv, FullSequence) else 0)
    ropes = rope_tables(config, kv.positions(T), length)
    # Where the cache needs queries of later layers, only their attention ends the pass over all tokens.
    late = None
    if last_owner is not None:
        above = [layer for layer in layers if layer.index >= last_owner and kv.reads_every_query(layer)]
        late = above[-1].index if above else None
    written: Cache | None = None  # before only last tokens go on
    loads: list[Load] = []
    for block, layer in zip(blocks, layers):
        if layer.owns:
            kv = kv.write(layer, *block.keys_values(x_BTD, ropes[layer.slides]))
        if layer.index == last_owner and late is None:
            written, x_BTD, kv = kv, kv.select_last(x_BTD), kv.at_last(T)
            ropes = rope_tables(config, kv.positions(1), length)
        ends_here = layer.index == late

        def run_block(
            x_BTD: jax.Array,
            block: Block = block,
            layer: Layer = layer,
            rope: RopeTable | None = ropes[layer.slides],
            kv: Cache = kv,
            ends_here: bool = ends_here,
        ) -> tuple[jax.Array, Load | None, Cache | None]:
            after = [kv]

            def read_kv(q_BTNH: jax.Array) -> jax.Array:
                scale, softcap = config.attention_scale or None, config.attention_softcap or None
                out_BTNH, after[0] = kv.attend(layer, q_BTNH, scale=scale, softcap=softcap)
                return kv.select_last(out_BTNH) if ends_here else out_BTNH

            going_on_BTD = kv.select_last(x_BTD) if ends_here else None
            x_BTD = block.attend(x_BTD, rope, read_kv, going_on_BTD)
            return *block.feed_forward(x_BTD, real_BT), None if after[0] is kv else after[0]

        x_BTD, load, scored = (remat(run_block) if remat else run_block)(x_BTD)
        kv = kv if scored is None else scored
        loads += [load] if load is not None else []
        if ends_here:
            written, kv = kv, kv.at_last(T)
            ropes = rope_tables(config, kv.positions(1), length)
    return x_BTD, kv if written is None else written.after_view(kv), loads
