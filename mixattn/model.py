"""The model: embed, blocks, norm, head. Training, prefill and decode are the one function `forward`.

Each layer that owns K/V writes them before any layer reads them; what "write" and "read" mean is the cache's
affair (`mixattn.cache.contiguous`), and `FullSequence` is the cache of a sequence that is all there.

Axes: B rows, T tokens, D model width, V vocabulary, N query heads, H head size, L layers, E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.attention import Attention
from mixattn.cache import Cache, FullSequence
from mixattn.layers import Embedding, FeedForward, Linear, Norm, RopeTable, rope_cos_sin, rope_frequencies
from mixattn.moe import Load, MoE
from mixattn.spec import Layer, ModelConfig


class Forward(NamedTuple):
    """What `Transformer.forward` returns.

    Attributes:
      hidden_BTD: after the final norm; [B, 1, D] with `last_only`.
      cache: with this step's tokens in it; None if none was given.
      aux: {} for dense models; else "load_balance" and "z", means over the mixture layers, and
        "expert_load_LE", each mixture layer's share of choices by expert (see `mixattn.moe.Load`).
    """

    hidden_BTD: jax.Array
    cache: Cache | None
    aux: dict[str, jax.Array]


class Block(nnx.Module):
    """x + attention(norm x), then x + ffn(norm x); each half a pure function of its own parameters."""

    def __init__(self, config: ModelConfig, layer: Layer, rngs: nnx.Rngs):
        def norm():
            return Norm(config.d_model, config)

        self.attention_norm, self.ffn_norm = norm(), norm()
        self.attention_post_norm = norm() if config.post_norms else None
        self.ffn_post_norm = norm() if config.post_norms else None
        self.attention = Attention(config, layer, rngs)
        if config.has_experts(layer.index):
            self.ffn: MoE | FeedForward = MoE(config, rngs)
        else:
            self.ffn = FeedForward(config, config.dense_width, rngs)

    def keys_values(self, x_BTD: jax.Array, turn: RopeTable | None) -> tuple[jax.Array, jax.Array]:
        """The K/V this layer owns, of the residual stream x."""
        return self.attention.keys_values(self.attention_norm(x_BTD), turn)

    def attend(self, x_BTD: jax.Array, turn: RopeTable | None, read) -> jax.Array:
        """The residual stream behind the attention half."""
        y_BTD = self.attention(self.attention_norm(x_BTD), turn, read)
        return x_BTD + (y_BTD if self.attention_post_norm is None else self.attention_post_norm(y_BTD))

    def feed(self, x_BTD: jax.Array, real_BT: jax.Array | None = None) -> tuple[jax.Array, Load | None]:
        """The residual stream behind the feed-forward half, and the load of a mixture's experts."""
        load = None
        if isinstance(self.ffn, MoE):
            y_BTD, load = self.ffn(self.ffn_norm(x_BTD), real_BT)
        else:
            y_BTD = self.ffn(self.ffn_norm(x_BTD))
        return x_BTD + (y_BTD if self.ffn_post_norm is None else self.ffn_post_norm(y_BTD)), load


def summary(loads: list[Load]) -> dict[str, jax.Array]:
    """The `aux` of a forward pass, from its mixture layers' loads."""
    if not loads:
        return {}
    both = jax.tree.map(lambda *layers: jnp.stack(layers), *loads)
    return {"load_balance": jnp.mean(both.balance), "z": jnp.mean(both.z), "expert_load_LE": both.share_E}


class Transformer(nnx.Module):
    """A decoder-only language model.

    Parameters: embed.table, blocks.{i}.attention.{q,k,v,o}, blocks.{i}.ffn.{gate,up,down}, the norms,
    final_norm, and lm_head unless tied. Readers have no k and v. Mixture layers keep {router,gate,up,down}.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs)
        self.blocks = nnx.List(Block(config, layer, rngs) for layer in config.layers)
        self.final_norm = Norm(config.d_model, config)
        self.lm_head = None if config.tied else Linear(config.d_model, config.vocab_size, config, rngs)

    def __call__(self, tokens_BT: jax.Array, *, segment_BT: jax.Array | None = None) -> jax.Array:
        """Teacher-forced logits_BTV, float32. `segment_BT` keeps packed documents apart."""
        return self.head(self.forward(tokens_BT, segment_BT=segment_BT).hidden_BTD)

    def forward(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_BT: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        remat: Callable | None = None,
    ) -> Forward:
        """Runs the stack over one step's tokens.

        Args:
          tokens_BT: int32.
          positions_BT: absolute positions when there is no cache (a cache knows its own); default 0..T-1.
            Negative = padding, seen by nobody.
          segment_BT: without a cache: only tokens of equal segments see each other.
          cache: holds the past and takes this step's K/V; None for a sequence that is all there.
          last_only: return only each row's last token. The layers above the last owner, and that owner but
            for its K/V, then run on one token a row: what prefill needs.
          remat: wraps each block's function from residual stream to residual stream (`jax.checkpoint`, say).
        """
        if cache is not None and (positions_BT is not None or segment_BT is not None):
            raise ValueError(
                "a cache knows its positions and has one sequence a row; give no positions, no segments"
            )
        config = self.config
        view: Cache = FullSequence({}, positions_BT, segment_BT) if cache is None else cache
        T = tokens_BT.shape[1]
        positions = view.positions(T)
        turns = self._turns(positions)
        x_BTD = self.embed(tokens_BT, positions)
        real_BT = None if positions_BT is None or last_only else positions_BT >= 0
        loads: list[Load] = []
        for block, layer in zip(self.blocks, config.layers):
            sliding = layer.window is not None
            if layer.owns:
                view = view.write(layer, *block.keys_values(x_BTD, turns[sliding]))
            if last_only and layer.index == config.owners[-1]:
                written, x_BTD, view = view, view.pick_last(x_BTD), view.last(T)
                turns = self._turns(view.positions(1))

            def read(q_BTNH, layer=layer, view=view):
                scale, softcap = config.attention_scale or None, config.attention_softcap or None
                return view.attend(layer, q_BTNH, scale=scale, softcap=softcap)

            def both(x_BTD, block=block, turn=turns[sliding], read=read):
                return block.feed(block.attend(x_BTD, turn, read), real_BT)

            x_BTD, load = (remat(both) if remat else both)(x_BTD)
            loads += [load] if load is not None else []
        after = written if last_only else view
        return Forward(self.final_norm(x_BTD), None if cache is None else after.advance(T), summary(loads))

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], float32, of hidden states [..., D]."""
        if self.lm_head is not None:
            logits = self.lm_head(hidden, out_dtype=jnp.float32)
        else:
            flat_XD = hidden.reshape(-1, hidden.shape[-1])
            logits = jnp.einsum(
                "XD,VD->XV", flat_XD, self.embed.table[...], preferred_element_type=jnp.float32
            )
            logits = logits.reshape(*hidden.shape[:-1], -1)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def _turns(self, positions_BT: jax.Array) -> dict[bool, RopeTable | None]:
        """The rotation of full (False) and sliding (True) layers."""
        if self.config.positions != "rope":
            return {False: None, True: None}
        freq = {sliding: rope_frequencies(self.config, sliding=sliding) for sliding in (False, True)}
        return {sliding: rope_cos_sin(positions_BT, freq_R) for sliding, freq_R in freq.items()}
