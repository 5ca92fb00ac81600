"""The tensors of a GGUF file under the names and in the order of a Hugging Face checkpoint.

Three things differ beside the names: the llama architecture rotates adjacent pairs, so its q and k rows are
permuted; Gemma's norms store 1 + w; experts are stacked into one tensor (older files store one each).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixattn.hf.config_fields import Raw
from mixattn.hf.gguf_file import GGUFFile

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
_GEMMA_BLOCK = _BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERT = {"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"}
_UNUSED = ("rope_freqs.weight",)


class _Source(NamedTuple):
    """The GGUF tensor that a Hugging Face tensor comes from, and which expert of a stack it is."""

    name: str
    expert: int | None = None


class GGUFTensors:
    """A `mixattn.hf.tensors.TensorSource` over a GGUF file.

    Args:
      raw: the file's config, from `gguf_config.read_config`.
    """

    def __init__(self, file: GGUFFile, raw: Raw) -> None:
        self._file = file
        self._permuted = file.metadata["general.architecture"] == "llama"
        self._heads = {"q": raw["num_attention_heads"], "k": raw["num_key_value_heads"]}
        self._offset_norms = raw["model_type"].startswith("gemma")
        self._block = _GEMMA_BLOCK if self._offset_norms else _BLOCK
        self._sources = dict(pair for name in file.infos if name not in _UNUSED for pair in self._named(name))

    def _named(self, name: str) -> Iterator[tuple[str, _Source]]:
        """Hugging Face names for a GGUF tensor; an unknown one keeps its name, and is refused as unused."""
        block = re.fullmatch(r"blk\.(\d+)\.([a-z_]+)(?:\.(\d+))?\.(weight|bias)", name)
        if block is None:
            yield _TOP.get(name, name), _Source(name)
            return
        layer, part, expert, kind = block.groups()
        prefix, stacked = f"model.layers.{layer}.", part.removesuffix("_exps")
        if expert is not None and part in _EXPERT:
            yield f"{prefix}block_sparse_moe.experts.{expert}.{_EXPERT[part]}.{kind}", _Source(name)
        elif stacked != part and stacked in _EXPERT:
            for e in range(self._file.infos[name].shape[0]):
                yield f"{prefix}block_sparse_moe.experts.{e}.{_EXPERT[stacked]}.{kind}", _Source(name, e)
        elif part in self._block:
            yield f"{prefix}{self._block[part]}.{kind}", _Source(name)
        else:
            yield name, _Source(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._sources[name]
        shape = self._file.infos[source.name].shape
        return shape if source.expert is None else shape[1:]

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        source = self._sources[name]
        if source.expert is not None:
            return self._file.read(source.name, dtype, source.expert)
        if self._offset_norms and "norm" in source.name:
            return (self._file.read(source.name, np.dtype(np.float32)) - np.float32(1)).astype(dtype)
        value = self._file.read(source.name, dtype)
        projection = re.search(r"\.attn_([qk])\.(weight|bias)$", source.name)
        return _halves(value, self._heads[projection[1]]) if self._permuted and projection else value


def _halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows from rotating adjacent pairs of a head to rotating its two halves."""
    rows = value.shape[0]
    pairs = value.reshape(heads, rows // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(value.shape)
