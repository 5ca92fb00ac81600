"""The model config, and the K/V bytes that follow from it. Imports no jax."""

from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np

from mixattn.spec import field_values
from mixattn.spec.patterns import PATTERNS
from mixattn.spec.wiring import Layer, parse_wiring

ACTIVATIONS = ("silu", "gelu", "gelu_exact", "relu", "relu2")
_CHOICES = {
    "positions": ("rope", "learned", "none"),
    "rope_scaling": ("none", "linear", "llama3", "yarn", "longrope", "dynamic"),
    "norm": ("rms", "layer"),
    "activation": ACTIVATIONS,
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "router_order": ("softmax_topk", "topk_softmax", "softmax_topk_raw"),
    "quantize": ("", "int8"),
}


@dataclass(unsafe_hash=True)
class ModelConfig:
    """A decoder-only transformer. Every supported architecture is a combination of these fields.

    Attributes:
      n_layers, d_model: depth, and width of the residual stream.
      n_heads, n_kv_heads, head_dim: query heads, key/value heads (a divisor of them), and width of each.
      d_ff: feed-forward width; of one expert in mixture layers.
      vocab_size: token ids of the embedding and the head.
      kv_wiring: wiring string, or the name of a pattern ("" = "standard").
      window: number of keys that a query of a sliding layer attends to, including its own.
      sinks: first positions of a sequence that sliding layers see at any distance, beside the window. Not in
        the MixAttention paper; attention sinks as in StreamingLLM (arXiv 2309.17453).
      positions: "rope" rotates q and k; "learned" adds row position + `position_offset` of a table of
        `max_positions` rows; "none".
      rope_theta, rope_theta_local: base of full and of sliding layers (0 = the same). `rope_scaling` does not
        apply to sliding layers with their own base.
      rope_fraction: leading fraction of each head that is rotated.
      rope_scaling: "linear" divides positions by `rope_factor`; "llama3" divides only low frequencies, with a
        ramp between wavelengths `rope_original / rope_high` and `rope_original / rope_low`; "yarn" the same
        between `rope_fast` and `rope_slow` rotations in `rope_original` tokens, as whole pairs with
        `rope_truncate`; "longrope" divides by `rope_short`, or by `rope_long` if a sequence gets longer than
        `rope_original`; "dynamic" raises the base for sequences longer than `max_positions`.
      rope_attention: with yarn and longrope, factor on cosine and sine (0 = as in their papers).
      rope_length: with longrope and dynamic, the longest sequence in tokens (0 = a forward's own length, or
        `max_positions` with a cache). The engine and `generate` set it; see `mixattn.rope`.
      max_positions: rows of the table of learned positions; otherwise the context it was trained for.
      position_offset: row of position 0 in that table.
      rope_factor, rope_low, rope_high, rope_original, rope_fast, rope_slow, rope_truncate: of `rope_scaling`.
      rope_short, rope_long: of "longrope": a divisor for each pair.
      norm: "rms", or "layer" (with bias).
      norm_eps: added to the mean square in norms.
      norm_unit_offset: the gain is stored as w and used as 1 + w.
      pre_norms: norms before attention and before the feed-forward.
      post_norms: further norms after attention and after the feed-forward, before the residual ("sandwich").
      qk_norm, qk_norm_by_head: RMS norm with a gain over each head of q and k, before the rotation; all heads
        together unless by head.
      activation: of the feed-forward: "silu", "gelu" (tanh form), "gelu_exact", "relu" or "relu2" (squared).
      gated: activation(x gate) * (x up), otherwise activation(x up).
      qkv_bias, out_bias, ffn_bias: biases of q, k, v; of o; of the dense feed-forward.
      attention_scale: factor on q k^T (0 = head_dim ** -0.5).
      attention_softcap, logit_softcap: c * tanh(x / c) on scores and on logits (0 = off).
      embedding_scale: factor on embedded tokens.
      tied: the output head is the transposed embedding.
      n_experts, experts_per_token: 0 experts = all layers are dense.
      dense_layers, d_ff_dense: layers of a mixture model that are dense, and their width (0 = d_ff).
      router_order: "softmax_topk" renormalizes the k kept probabilities (Mixtral), "topk_softmax" takes the
        softmax of the k kept logits (the same values), "softmax_topk_raw" uses the probabilities unchanged.
      capacity_factor: 0 = dropless; otherwise an expert takes at most ceil(factor * k * tokens / n_experts)
        tokens.
      dtype: of weights and activations; norms, softmax, router and logits are float32 in every narrower one.
      quantize: "int8" stores linear maps, experts, token embeddings and the head as 8-bit integers with a
        scale per output channel, and multiplies integers (`pallas_kernels.int8`); norms, biases, routers and
        learned positions stay in `dtype`, as do activations between products. Such a model runs and is not
        trained; `mixattn.quantize` makes one.

    Raises:
      ValueError: from `check()`, with the two facts that disagree.
    """

    n_layers: int = 6
    d_model: int = 128
    n_heads: int = 2
    n_kv_heads: int = 1
    head_dim: int = 64
    d_ff: int = 512
    vocab_size: int = 2048
    kv_wiring: str = ""
    window: int = 1024
    sinks: int = 0

    positions: str = "rope"
    rope_theta: float = 10_000.0
    rope_theta_local: float = 0.0
    rope_fraction: float = 1.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 8192
    rope_fast: float = 32.0
    rope_slow: float = 1.0
    rope_truncate: bool = True
    rope_attention: float = 0.0
    rope_short: tuple[float, ...] = ()
    rope_long: tuple[float, ...] = ()
    rope_length: int = 0
    max_positions: int = 2048
    position_offset: int = 0

    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_unit_offset: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: bool = False
    qk_norm_by_head: bool = True
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    tied: bool = False

    n_experts: int = 0
    experts_per_token: int = 0
    d_ff_dense: int = 0
    dense_layers: tuple[int, ...] = ()
    router_order: str = "softmax_topk"
    capacity_factor: float = 0.0

    dtype: str = "float32"
    quantize: str = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises ValueError if two fields disagree, or one is of the wrong type or out of range."""
        field_values.check(self)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} query heads do not split over {self.n_kv_heads} kv heads")
        if len(self.layers) != self.n_layers:
            raise ValueError(f"kv_wiring has {len(self.layers)} entries but n_layers is {self.n_layers}")
        if self.positions == "rope":
            self._check_rope()
        if self.n_experts and not 1 <= self.experts_per_token <= self.n_experts:
            raise ValueError(f"experts_per_token is {self.experts_per_token} of {self.n_experts} experts")
        if any(not 0 <= i < self.n_layers for i in self.dense_layers):
            raise ValueError(f"dense_layers {self.dense_layers} names a layer outside 0..{self.n_layers - 1}")

    def _check_rope(self) -> None:
        rotated = self.rotated
        if rotated < 2 or rotated % 2 or rotated > self.head_dim:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} rotates {rotated}"
                " entries; RoPE rotates pairs"
            )
        if self.rope_scaling == "llama3" and self.rope_low >= self.rope_high:
            raise ValueError(f"rope_low is {self.rope_low}; it must be below rope_high={self.rope_high}")
        if self.rope_scaling == "dynamic" and rotated < 4:
            raise ValueError(f"dynamic rope scaling needs at least 4 rotated entries, not {rotated}")
        if self.rope_scaling == "longrope":
            for name in ("rope_short", "rope_long"):
                if (count := len(getattr(self, name))) != rotated // 2:
                    raise ValueError(f"{name} has {count} factors for {rotated // 2} rotated pairs")

    @property
    def wiring(self) -> str:
        """The wiring string; a pattern's name is resolved at this depth."""
        name = self.kv_wiring or "standard"
        return PATTERNS[name](self.n_layers) if name in PATTERNS else name

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers from the bottom up, as the wiring describes them."""
        return parse_wiring(self.wiring, self.window, self.sinks)

    @property
    def owners(self) -> tuple[int, ...]:
        """Indices of the layers that store K/V, from the bottom up."""
        return tuple(layer.index for layer in self.layers if layer.owns)

    @property
    def rotated(self) -> int:
        """Number of leading entries of a head that RoPE rotates."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def dense_width(self) -> int:
        """Feed-forward width of the dense layers."""
        return self.d_ff_dense or self.d_ff

    def has_experts(self, layer: int) -> bool:
        """Whether the layer's feed-forward is a mixture of experts."""
        return self.n_experts > 0 and layer not in self.dense_layers


def stored_head_bytes(head_dim: int, dtype: str) -> int:
    """Bytes of one head's key or value as caches store it; 8-bit codes have a float32 scale behind them."""
    return head_dim * itemsize(dtype) + SCALE_BYTES * (dtype == "int8")


def itemsize(dtype: str) -> int:
    """Bytes of one element.

    Raises:
      ValueError: an unknown dtype name.
    """
    try:
        return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
    except TypeError as why:
        raise ValueError(f"unknown dtype {dtype!r}") from why


SCALE_BYTES = 4  # behind the codes of a head that is stored in 8 bits
SCORE_BYTES = 8  # a key that may be evicted has a float32 score and an int32 position


class KeptSlots(Protocol):
    """The part of `mixattn.keep.Keep` that counts."""

    def slots(self, prompt: int, new: int, index: int, layers: int) -> int:
        """Keys per key/value head that the `index`-th of `layers` full owners has room for."""
        ...


def kv_bytes_by_owner(
    config: ModelConfig,
    tokens: int,
    dtype: str = "bfloat16",
    windowed: bool = True,
    keep: KeptSlots | None = None,
) -> dict[int, int]:
    """K/V bytes of one sequence of `tokens` tokens, by owner.

    A full owner stores every token, or what `keep` (a `mixattn.keep.Keep`) leaves of a prompt of so many
    tokens, with 8 bytes a key for its score and position. A sliding owner stores the last `window` tokens
    and the sinks, or every token if not `windowed`, as caches without window support do.
    """
    if keep is not None:
        full = [owner for owner in config.owners if not config.layers[owner].slides]
        key_bytes = config.n_kv_heads * (2 * stored_head_bytes(config.head_dim, dtype) + SCORE_BYTES)
        kept = {i: key_bytes * keep.slots(tokens, 0, n, len(full)) for n, i in enumerate(full)}
        return kv_bytes_by_owner(config, tokens, dtype, windowed) | kept
    token_bytes = 2 * config.n_kv_heads * stored_head_bytes(config.head_dim, dtype)
    limits = {i: _kept_tokens(config.layers[i]) if windowed else None for i in config.owners}
    return {i: token_bytes * (tokens if most is None else min(tokens, most)) for i, most in limits.items()}


def _kept_tokens(layer: Layer) -> int | None:
    """The most tokens that a sliding owner stores; None for a full one."""
    return None if layer.window is None else layer.window + layer.sinks


def kv_bytes(
    config: ModelConfig,
    tokens: int,
    dtype: str = "bfloat16",
    windowed: bool = True,
    keep: KeptSlots | None = None,
) -> int:
    """K/V bytes of one sequence: 2 K H b (n_full T + n_sliding min(T, W + sinks)), as the caches hold.

    In "int8" H b is H + 4: codes, and a scale behind them.

    With `keep`, see `kv_bytes_by_owner`.
    """
    return sum(kv_bytes_by_owner(config, tokens, dtype, windowed, keep).values())
