"""Bytes and FLOPs of a mixture model's parts, from its `ModelConfig`. Pure; no jax.

Windows, K/V sharing and a K/V budget (H2O) act on two different figures: what a layer's attention *reads* and
what the whole model *stores*. A window or a budget shortens both; sharing K/V between layers shortens only
what is stored.

Axes of names: D model width, F expert width, E experts, k experts of a token, L layers, b bytes of an
element.
"""

from dataclasses import dataclass
from functools import cached_property

from mixattn.spec import ModelConfig
from mixattn.spec.config import itemsize

MODELS: dict[str, ModelConfig] = {
    "mixtral-8x7b": ModelConfig(
        *(32, 4096, 32, 8, 128, 14336, 32000),
        n_experts=8, experts_per_token=2, rope_theta=1e6, dtype="bfloat16",
    ),
    "mixtral-8x22b": ModelConfig(
        *(56, 6144, 48, 8, 128, 16384, 32768),
        n_experts=8, experts_per_token=2, rope_theta=1e6, dtype="bfloat16",
    ),
    "dbrx": ModelConfig(
        *(40, 6144, 48, 8, 128, 10752, 100352),
        n_experts=16, experts_per_token=4, rope_theta=5e5, dtype="bfloat16",
    ),
}  # fmt: skip


def named_model(name: str) -> ModelConfig:
    """The known mixture model of that name.

    Raises:
      ValueError: no model has it.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]


def distinct_experts(config: ModelConfig, tokens: float) -> float:
    """Expected number of experts that `tokens` uniformly routed tokens choose: E (1 - (1 - k/E)^tokens)."""
    E, k = config.n_experts, config.experts_per_token
    return E * (1 - (1 - k / E) ** tokens)


@dataclass(frozen=True)
class MixtureShape:
    """Sizes that plans and rooflines need. All bytes are those of the config's dtype.

    Attributes:
      config: a model with at least one mixture layer.
      kv_budget_tok: keys that a layer keeps at most (H2O); None = all.
    """

    config: ModelConfig
    kv_budget_tok: int | None = None

    def __post_init__(self) -> None:
        if not self.mixture_layers:
            raise ValueError(
                f"the model has {self.config.n_experts} experts in {self.mixture_layers} of"
                f" {self.config.n_layers} layers; offloading is for mixture models"
            )

    @cached_property
    def b(self) -> int:
        """Bytes of an element."""
        return itemsize(self.config.dtype)

    @cached_property
    def mixture_layers(self) -> int:
        """Number of layers with experts."""
        return sum(self.config.has_experts(i) for i in range(self.config.n_layers))

    @cached_property
    def matrices(self) -> int:
        """Matrices of an expert: gate, up and down, or up and down."""
        return 3 if self.config.gated else 2

    @cached_property
    def expert_bytes(self) -> int:
        """One expert."""
        return self.b * self.matrices * self.config.d_model * self.config.d_ff

    @cached_property
    def layer_expert_bytes(self) -> int:
        """All experts of one layer (W_e)."""
        return self.expert_bytes * self.config.n_experts

    @cached_property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.config.n_heads * self.config.head_dim

    @cached_property
    def kv_width(self) -> int:
        """Width of all K heads together."""
        return self.config.n_kv_heads * self.config.head_dim

    @cached_property
    def projection_bytes(self) -> int:
        """Q, K, V and O projections of one layer that owns K/V."""
        return self.b * self.config.d_model * 2 * (self.q_width + self.kv_width)

    @cached_property
    def resident_bytes(self) -> int:
        """Attention projections of all layers (W_o) and feed-forwards of dense layers, which stay on the
        device.

        Embedding and head are not counted, as in the paper's model.
        """
        config = self.config
        readers = config.n_layers - len(config.owners)
        dense = (config.n_layers - self.mixture_layers) * self.matrices * config.d_model * config.dense_width
        return config.n_layers * self.projection_bytes + self.b * (
            dense - 2 * readers * config.d_model * self.kv_width
        )

    def seen_tok(self, layer: int, context_tok: float) -> float:
        """Keys that a query of the layer attends to when the context has `context_tok` tokens."""
        limits = (self.config.layers[layer].window, self.kv_budget_tok)
        return min([context_tok, *(limit for limit in limits if limit is not None)])

    def mean_seen_tok(self, context_tok: float) -> float:
        """`seen_tok`, the mean over layers: what attention reads of a layer's K/V."""
        layers = range(self.config.n_layers)
        return sum(self.seen_tok(i, context_tok) for i in layers) / self.config.n_layers

    def stored_tok_layers(self, context_tok: float) -> float:
        """Keys stored for one sequence, summed over the layers that own K/V."""
        return sum(self.seen_tok(i, context_tok) for i in self.config.owners)

    @cached_property
    def kv_tok_bytes(self) -> int:
        """K and V of one token in one layer."""
        return 2 * self.b * self.kv_width

    def kv_bytes(self, context_tok: float) -> float:
        """K/V of one sequence in the whole model."""
        return self.kv_tok_bytes * self.stored_tok_layers(context_tok)

    def ffn_flops(self, tokens: float) -> float:
        """FLOPs of one mixture layer's experts: 2 for each weight that a token meets."""
        config = self.config
        return 2 * self.matrices * config.d_model * config.d_ff * config.experts_per_token * tokens

    def ffn_bytes(self, tokens: float, *, all_experts: bool = False) -> float:
        """Bytes that one layer's experts read and write: hidden states and the expected distinct experts."""
        config = self.config
        experts = config.n_experts if all_experts else distinct_experts(config, tokens)
        return self.b * tokens * (config.d_model + config.d_ff) + experts * self.expert_bytes

    def attention_flops(self, seen_tok: float, *, as_published: bool = True) -> float:
        """FLOPs of one query's attention in one layer.

        Args:
          as_published: 2 H + 2 per key and head, as the artifact counts (Q K^T and softmax), instead of 4 H.
        """
        config = self.config
        per_key = 2 * config.head_dim + 2 if as_published else 4 * config.head_dim
        return seen_tok * config.n_heads * per_key

    def attention_bytes(self, seen_tok: float, bytes_per_element: float | None = None) -> float:
        """Bytes of one query's attention in one layer: q, output, K and V."""
        b = self.b if bytes_per_element is None else bytes_per_element
        return b * (2 * self.q_width + 2 * seen_tok * self.kv_width)
