"""What a GGUF file's metadata says of the model, as the fields of a Hugging Face config.json.

A GGUF architecture is read as one of `mixattn.hf.families`, so that there is one place where families are
translated. Files leave out what llama.cpp fixes in code; those defaults are stated here with the key that
overrides them. Mistral and Mixtral files name the architecture "llama".
"""

from collections.abc import Callable
from typing import Any

from mixattn.hf.config_fields import Raw
from mixattn.hf.gguf_file import GGUFFile
from mixattn.hf.gguf_rope import llama3_scaling

_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # they scale q k^T by the model's width, not the head's


class _Keys:
    """The metadata of one architecture, by the key's name behind it."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value; one per layer must be equal in all layers."""
        value = self.file.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and name != "attention.sliding_window_pattern":
            if len(set(value)) != 1:
                raise ValueError(f"{self.file.path}: {name} differs between layers: {value[:8]}")
            return value[0]
        return value

    def need(self, name: str) -> Any:
        value = self(name)
        if value is None:
            raise ValueError(f"{self.file.path} has no {self.architecture}.{name}")
        return value


def model_type_of(file: GGUFFile) -> str:
    """The family in `mixattn.hf.families` that computes what the file's architecture does.

    Raises:
      ValueError: an unknown architecture.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture == "llama":
        if file.metadata.get("llama.expert_count", 0):
            return "mixtral"
        return "mistral" if file.metadata.get("llama.attention.sliding_window") else "llama"
    if architecture not in _READERS:
        raise ValueError(
            f"{file.path} has architecture {architecture!r}; known are llama (also Mistral and Mixtral), "
            + ", ".join(_READERS)
        )
    return "gemma3_text" if architecture == "gemma3" else architecture


def read_config(file: GGUFFile) -> Raw:
    """The config.json that says the same as the file's metadata.

    Raises:
      ValueError: an unknown architecture, a missing key, or a feature the model does not have.
    """
    model_type = model_type_of(file)
    keys = _Keys(file, file.metadata["general.architecture"])
    raw = {"model_type": model_type, "dtype": _dtype(file), **_common(keys)}
    raw |= _llama(keys, model_type) if keys.architecture == "llama" else _READERS[keys.architecture](keys)
    return raw


def _dtype(file: GGUFFile) -> str:
    """bfloat16 if that is how most of the file is stored; other types are dequantised to float32."""
    plain = sum(i.rows * i.row_bytes for i in file.infos.values() if i.quantization == "BF16")
    return "bfloat16" if 2 * plain > sum(i.rows * i.row_bytes for i in file.infos.values()) else "float32"


def _common(keys: _Keys) -> Raw:
    heads, width = keys.need("attention.head_count"), keys.need("embedding_length")
    head_dim = keys("attention.key_length") or width // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys(name, head_dim) != head_dim:
            raise ValueError(
                f"{keys.file.path}: {name} is {keys(name)}; only the head size {head_dim} is supported"
            )
    if "token_embd.weight" not in keys.file.infos:
        raise ValueError(f"{keys.file.path} has no tensor token_embd.weight; it holds a vocabulary only")
    return {
        "num_hidden_layers": keys.need("block_count"),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": keys("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": keys.need("feed_forward_length"),
        "vocab_size": keys.file.infos["token_embd.weight"].shape[0],
        "rms_norm_eps": _decimal(keys.need("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": keys.need("context_length"),
        "tie_word_embeddings": "output.weight" not in keys.file.infos,
        "rope_theta": keys("rope.freq_base", 10_000.0),
        **_rope_scaling(keys, head_dim),
    }


def _decimal(value: float) -> float:
    """A float32 as the shortest decimal number that it stores: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _rope_scaling(keys: _Keys, head_dim: int) -> Raw:
    kind = keys("rope.scaling.type", "none")
    if "rope_freqs.weight" in keys.file.infos:
        return {"rope_scaling": llama3_scaling(keys.file, keys("rope.freq_base", 10_000.0), head_dim)}
    if kind == "none":
        return {}
    if kind != "linear":
        raise ValueError(
            f"{keys.file.path}: rope scaling {kind!r} is not supported; known are none, linear, llama3"
        )
    return {"rope_scaling": {"rope_type": "linear", "factor": keys.need("rope.scaling.factor")}}


def _llama(keys: _Keys, model_type: str) -> Raw:
    biased = "blk.0.attn_q.bias" in keys.file.infos
    if model_type == "llama":
        return {"attention_bias": biased, "mlp_bias": "blk.0.ffn_up.bias" in keys.file.infos}
    window = {"sliding_window": keys("attention.sliding_window")}
    if model_type == "mistral":
        return window
    experts, used = keys.need("expert_count"), keys.need("expert_used_count")
    width = keys("expert_feed_forward_length") or keys.need("feed_forward_length")
    return window | {"num_local_experts": experts, "num_experts_per_tok": used, "intermediate_size": width}


def _qwen2(keys: _Keys) -> Raw:
    return {"use_sliding_window": False}


def _qwen3(keys: _Keys) -> Raw:
    return {"use_sliding_window": False, "attention_bias": "blk.0.attn_q.bias" in keys.file.infos}


def _gemma2(keys: _Keys) -> Raw:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    raw = {"sliding_window": keys("attention.sliding_window", 4096), "layer_types": _layer_types(keys, 2)}
    return raw | _gemma_scale(keys) | {name: keys(name, value) for name, value in caps.items()}


def _gemma3(keys: _Keys) -> Raw:
    window = keys("attention.sliding_window")
    raw = {
        "sliding_window": window,
        "layer_types": _layer_types(keys, 6) if window else None,
        "rope_local_base_freq": keys("rope.freq_base_swa", 10_000.0),
        "rope_theta": keys("rope.freq_base", 1e6),
        "final_logit_softcapping": keys("final_logit_softcapping"),
    }
    return raw | _gemma_scale(keys)


def _gemma_scale(keys: _Keys) -> Raw:
    scale = keys("attention.scale")
    if scale:
        return {"query_pre_attn_scalar": scale**-2}
    heads, width = keys.need("attention.head_count"), keys.need("embedding_length")
    wide = keys.need("block_count") == _GEMMA_27B_LAYERS[keys.architecture]
    return {
        "query_pre_attn_scalar": width // heads if wide else keys("attention.key_length") or width // heads
    }


def _layer_types(keys: _Keys, period: int) -> list[str]:
    """Every `period`-th layer is full; a pattern in the file is a period, or says which layers slide."""
    layers, pattern = keys.need("block_count"), keys("attention.sliding_window_pattern", period)
    slides = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
    return ["sliding_attention" if s else "full_attention" for s in slides]


_READERS: dict[str, Callable[[_Keys], Raw]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
