"""A mixattn model in torch, for transformers 5: sliding windows, shared K/V, mixtures of experts, a cache.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The names and shapes of the parameters are those of the JAX model, so the weights are read as they are. A
layer that reads another one's keys and values has none in the cache; sliding layers keep their window only.

Axes: B rows, T queries, S keys, N query heads, K kv heads, H head size, R rotated pairs, X = B*T.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class ModelFields:
    """The fields of our `ModelConfig` as attributes, and each layer's owner and window."""

    def __init__(self, values: dict[str, Any], wiring: str) -> None:
        self.__dict__ |= values
        entries = [(int(entry.rstrip("s")), entry.endswith("s")) for entry in wiring.split("_")]
        self.owner = [owner for owner, _ in entries]
        self.windows = [values["window"] if slides else None for _, slides in entries]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the config has no field {name}")


class MixAttentionConfig(PreTrainedConfig):
    model_type = "mixattn"

    def __init__(self, mixattn: dict[str, Any] | None = None, wiring: str = "", **kwargs: Any) -> None:
        self.mixattn, self.wiring = dict(mixattn or {}), wiring
        if sinks := self.mixattn.get("sinks", 0):
            raise ValueError(f"the config has {sinks} sinks in sliding layers; this code has windows only")
        if wiring:
            kinds = ["sliding_attention" if e.endswith("s") else "full_attention" for e in wiring.split("_")]
            kwargs |= {"layer_types": kinds, "sliding_window": self.mixattn["window"]}
        super().__init__(**kwargs)

    @property
    def fields(self) -> ModelFields:
        return ModelFields(self.mixattn, self.wiring)


class TorchLinear(nn.Module):
    """y = x @ kernel + bias; the kernel is [in, out]."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(d_in, d_out))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.kernel
        return y if self.bias is None else y + self.bias


class TorchNorm(nn.Module):
    """RMS norm, or LayerNorm with bias, computed in float32."""

    def __init__(self, width: int, f: ModelFields, kind: str | None = None) -> None:
        super().__init__()
        self.eps, self.unit_offset = f.norm_eps, f.norm_unit_offset
        self.gain = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if (kind or f.norm) == "layer" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        if self.bias is not None:
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        if self.unit_offset:
            return (y * (1 + self.gain.float())).to(x.dtype)
        y = y.to(x.dtype) * self.gain
        return y if self.bias is None else y + self.bias


class TorchEmbedding(nn.Module):
    """Token embeddings times a factor, plus learned positions if configured."""

    def __init__(self, f: ModelFields) -> None:
        super().__init__()
        self.scale, self.offset = f.embedding_scale, f.position_offset
        self.table = nn.Parameter(torch.empty(f.vocab_size, f.d_model))
        rows = f.max_positions + f.position_offset
        learned = f.positions == "learned"
        self.positions = nn.Parameter(torch.empty(rows, f.d_model)) if learned else None

    def forward(self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.table[tokens_BT]
        if self.scale != 1:
            x_BTD = x_BTD * torch.tensor(self.scale, dtype=x_BTD.dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[(positions_BT + self.offset).clamp(min=0)]
        return x_BTD


class TorchFeedForward(nn.Module):
    def __init__(self, f: ModelFields, width: int) -> None:
        super().__init__()
        self.act = ACTIVATIONS[f.activation]
        self.gate = TorchLinear(f.d_model, width, f.ffn_bias) if f.gated else None
        self.up, self.down = (
            TorchLinear(f.d_model, width, f.ffn_bias),
            TorchLinear(width, f.d_model, f.ffn_bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


class TorchMoE(nn.Module):
    """A mixture of experts that drops no token."""

    def __init__(self, f: ModelFields) -> None:
        super().__init__()
        E, D, F_ = f.n_experts, f.d_model, f.d_ff
        self.k, self.order, self.act = f.experts_per_token, f.router_order, ACTIVATIONS[f.activation]
        self.router = nn.Parameter(torch.empty(D, E))
        self.gate = nn.Parameter(torch.empty(E, D, F_)) if f.gated else None
        self.up, self.down = nn.Parameter(torch.empty(E, D, F_)), nn.Parameter(torch.empty(E, F_, D))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        p_XE = torch.softmax(x_XD.float() @ self.router.float(), dim=-1)
        gate_Xk, expert_Xk = torch.topk(p_XE, self.k, dim=-1)
        if self.order != "softmax_topk_raw":
            gate_Xk = gate_Xk / gate_Xk.sum(-1, keepdim=True)
        y_XD = torch.zeros_like(x_XD)
        for e in range(self.up.shape[0]):
            rows, choice = torch.where(expert_Xk == e)
            hidden = x_XD[rows] @ self.up[e]
            hidden = self.act(hidden) if self.gate is None else self.act(x_XD[rows] @ self.gate[e]) * hidden
            weight = gate_Xk[rows, choice, None].to(x_XD.dtype)
            y_XD.index_add_(0, rows, (hidden @ self.down[e]) * weight)
        return y_XD.reshape(x_BTD.shape)


class TorchAttention(nn.Module):
    """Owners have k and v; readers attend to their owner's, normalized and rotated once."""

    def __init__(self, f: ModelFields, layer: int) -> None:
        super().__init__()
        self.f, self.owner, self.window = f, f.owner[layer], f.windows[layer]
        heads, kv_heads, owns = f.n_heads * f.head_dim, f.n_kv_heads * f.head_dim, f.owner[layer] == layer
        self.q = TorchLinear(f.d_model, heads, f.qkv_bias)
        self.k = TorchLinear(f.d_model, kv_heads, f.qkv_bias) if owns else None
        self.v = TorchLinear(f.d_model, kv_heads, f.qkv_bias) if owns else None
        self.o = TorchLinear(heads, f.d_model, f.out_bias)
        width = (f.head_dim, f.head_dim) if f.qk_norm_by_head else (heads, kv_heads)
        self.q_norm = TorchNorm(width[0], f, "rms") if f.qk_norm else None
        self.k_norm = TorchNorm(width[1], f, "rms") if f.qk_norm and owns else None

    def heads(self, y: torch.Tensor, norm: TorchNorm | None = None) -> torch.Tensor:
        """[B, heads, T, H]."""
        if norm is not None and not self.f.qk_norm_by_head:
            y, norm = norm(y), None
        y = y.reshape(*y.shape[:2], -1, self.f.head_dim)
        return (y if norm is None else norm(y)).transpose(1, 2)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        kv: dict[int, tuple[torch.Tensor, torch.Tensor]],
        cache: Any,
        mask_BT: torch.Tensor | None,
        past: int,
    ) -> torch.Tensor:
        if self.k is not None and self.v is not None:
            k, v = rotate(self.heads(self.k(x_BTD), self.k_norm), rope), self.heads(self.v(x_BTD))
            kv[self.owner] = cache.update(k, v, self.owner) if cache is not None else (k, v)
        q = rotate(self.heads(self.q(x_BTD), self.q_norm), rope)
        k, v = (y.repeat_interleave(self.f.n_heads // self.f.n_kv_heads, dim=1) for y in kv[self.owner])
        scale = self.f.attention_scale or self.f.head_dim**-0.5
        scores = (q.float() @ k.float().transpose(2, 3)) * scale
        if cap := self.f.attention_softcap:
            scores = cap * torch.tanh(scores / cap)
        seen = self.visible(x_BTD.shape[1], k.shape[2], mask_BT, past, x_BTD.device)
        # The lowest number, not -inf: a row of padding that sees nothing stays finite.
        p = torch.softmax(scores.masked_fill(~seen, torch.finfo(torch.float32).min), dim=-1)
        out = (p @ v.float()).to(x_BTD.dtype).transpose(1, 2)
        return self.o(out.reshape(*x_BTD.shape[:2], -1))

    def visible(
        self, T: int, S: int, mask_BT: torch.Tensor | None, past: int, device: torch.device
    ) -> torch.Tensor:
        """Which keys each query sees; the S keys are the last ones up to the last query."""
        query = past + torch.arange(T, device=device)[:, None]
        key = past + T - S + torch.arange(S, device=device)[None]
        seen = key <= query
        if self.window is not None:
            seen = seen & (query - key < self.window)
        return seen[None, None] if mask_BT is None else seen & mask_BT[:, None, None, -S:].bool()


class TorchBlock(nn.Module):
    def __init__(self, f: ModelFields, layer: int) -> None:
        super().__init__()

        def norm(wanted: bool) -> TorchNorm | None:
            return TorchNorm(f.d_model, f) if wanted else None

        self.attention_norm, self.ffn_norm = norm(f.pre_norms), norm(f.pre_norms)
        self.attention_post_norm, self.ffn_post_norm = norm(f.post_norms), norm(f.post_norms)
        self.attention = TorchAttention(f, layer)
        sparse = f.n_experts and layer not in f.dense_layers
        self.ffn = TorchMoE(f) if sparse else TorchFeedForward(f, f.d_ff_dense or f.d_ff)

    def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
        x = x + normed(self.attention_post_norm, self.attention(normed(self.attention_norm, x), *context))
        return x + normed(self.ffn_post_norm, self.ffn(normed(self.ffn_norm, x)))


class MixAttentionForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MixAttentionConfig
    base_model_prefix = "model"
    _no_split_modules = ["TorchBlock"]  # noqa: RUF012  transformers wants a list
    _supports_attention_backend = False

    def __init__(self, config: MixAttentionConfig) -> None:
        super().__init__(config)
        f = self.f = config.fields
        if config.mixattn.get("quantize"):
            raise ValueError(
                f"the weights are {f.quantize} codes, with which this code does not compute; open the float"
                " model"
            )
        self.embed = TorchEmbedding(f)
        self.blocks = nn.ModuleList(TorchBlock(f, layer) for layer in range(f.n_layers))
        self.final_norm = TorchNorm(f.d_model, f)
        self.lm_head = None if f.tied else TorchLinear(f.d_model, f.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from the checkpoint; a model without one is drawn at random."""
        for name, parameter in module.named_parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.constant_(
                parameter, float(name == "gain" and not self.f.norm_unit_offset)
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> None:
        """None: a tied head is the table itself, so there is nothing to tie."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        B, T = input_ids.shape
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has {attention_mask.dim()} axes; it must be [batch, tokens]")
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=input_ids.device)[None].expand(B, T)
        x = self.embed(input_ids, position_ids)
        ropes = rope_tables(self.f, position_ids, T if past_key_values is None else 0)
        kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for block in self.blocks:
            rope = ropes[block.attention.window is not None]
            x = block(x, rope, kv, past_key_values, attention_mask, past)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(self.final_norm(x)[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.embed.table.T if self.lm_head is None else self.lm_head.kernel
        logits = x.float() @ kernel.float()
        cap = self.f.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def normed(norm: TorchNorm | None, x: torch.Tensor) -> torch.Tensor:
    return x if norm is None else norm(x)


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Rotates the pairs (i, i + R) of the first 2R entries of each head."""
    if rope is None:
        return x
    cos, sin = rope
    R = cos.shape[-1]
    a, b, rest = x[..., :R].float(), x[..., R : 2 * R].float(), x[..., 2 * R :]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], dim=-1)


def rope_tables(f: ModelFields, positions_BT: torch.Tensor, length: int) -> dict[bool, Any]:
    """Cosine and sine [B, 1, T, R] of full (False) and sliding (True) layers."""
    if f.positions != "rope":
        return {False: None, True: None}
    tables = {}
    for sliding in (False, True):
        own_base = sliding and f.rope_theta_local > 0
        freq_R, factor = frequencies(f, f.rope_length or length or f.max_positions, own_base)
        angle = positions_BT.float()[:, None, :, None] * torch.tensor(freq_R, device=positions_BT.device)
        tables[sliding] = (angle.cos() * factor, angle.sin() * factor)
    return tables


def frequencies(f: ModelFields, length: int, own_base: bool) -> tuple[list[float], float]:
    """Radians per position of each rotated pair, and the factor on cosine and sine."""
    size, kind, scale = int(f.head_dim * f.rope_fraction), f.rope_scaling, f.rope_factor
    theta = f.rope_theta_local if own_base else f.rope_theta
    if kind == "dynamic" and not own_base:
        grown = scale * max(length, f.max_positions) / f.max_positions - (scale - 1)
        theta *= grown ** (size / (size - 2))
    freq = [theta ** -(2 * i / size) for i in range(size // 2)]
    if own_base or kind in ("none", "dynamic"):
        return freq, 1.0
    kept = [0.0] * len(freq)
    if kind == "llama3":
        periods = [f.rope_original * x / (2 * math.pi) for x in freq]
        kept = [min(max((p - f.rope_low) / (f.rope_high - f.rope_low), 0), 1) for p in periods]
    if kind == "yarn":
        kept = yarn_kept(f, size)
    if kind == "longrope":
        factors = f.rope_long if length > f.rope_original else f.rope_short
        return [x / by for x, by in zip(freq, factors)], attention_factor(f)
    return [k * x + (1 - k) * x / scale for k, x in zip(kept, freq)], attention_factor(f)


def yarn_kept(f: ModelFields, size: int) -> list[float]:
    ends = [
        size * math.log(f.rope_original / (r * 2 * math.pi)) / (2 * math.log(f.rope_theta))
        for r in (f.rope_fast, f.rope_slow)
    ]
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if f.rope_truncate else ends
    low, high = max(low, 0), min(high, size - 1)
    return [1 - min(max((i - low) / (high - low or 1e-3), 0), 1) for i in range(size // 2)]


def attention_factor(f: ModelFields) -> float:
    if f.rope_scaling not in ("yarn", "longrope"):
        return 1.0
    if f.rope_attention or f.rope_factor <= 1:
        return f.rope_attention or 1.0
    if f.rope_scaling == "yarn":
        return 0.1 * math.log(f.rope_factor) + 1
    return math.sqrt(1 + math.log(f.rope_factor) / math.log(f.rope_original))
