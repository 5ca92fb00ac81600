"""The model that is measured: random weights of a chosen size, written once, tensor by tensor."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mixattn.hf.safetensors_file import save_aligned
from mixattn.spec import ModelConfig

# In Mixtral's layout, which transformers opens too: 6 layers of 168 MiB of experts, 1.05 GiB in all.
MEASURED = ModelConfig(
    n_layers=6, d_model=1024, n_heads=8, n_kv_heads=2, head_dim=128, d_ff=1792, vocab_size=1024,
    n_experts=8, experts_per_token=2, max_positions=512, rope_theta=1e6,
)  # fmt: skip

# More than four times half a GiB: 20 layers of 108 MiB of experts, 2.1 GiB in all.
DEEP = ModelConfig(
    n_layers=20, d_model=768, n_heads=4, n_kv_heads=1, head_dim=128, d_ff=1536, vocab_size=1024,
    n_experts=8, experts_per_token=2, max_positions=512, rope_theta=1e6,
)  # fmt: skip


def write(path: Path, config: ModelConfig = MEASURED) -> Path:
    """A Mixtral checkpoint of random weights, one shard a layer; what is there stays."""
    if (path / "config.json").exists():
        return path
    from mixattn.hf import translate

    path.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(config)):
        name = f"model-{number + 1:05}-of-{config.n_layers + 1:05}.safetensors"
        save_aligned(shard, path / name)
        weight_map |= dict.fromkeys(shard, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(translate.write_config("mixtral", config), indent=2))
    return path


def _shards(config: ModelConfig) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    D, F, V, E = config.d_model, config.d_ff, config.vocab_size, config.n_experts
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim

    def normal(out: int, width: int) -> np.ndarray:
        return (rng.standard_normal((out, width), np.float32) * width**-0.5).astype(np.float32)

    ones = np.ones(D, np.float32)
    yield {
        "model.embed_tokens.weight": normal(V, D),
        "model.norm.weight": ones,
        "lm_head.weight": normal(V, D),
    }
    for i in range(config.n_layers):
        at = f"model.layers.{i}"
        shard = {f"{at}.input_layernorm.weight": ones, f"{at}.post_attention_layernorm.weight": ones}
        for name, rows, width in (("q", q, D), ("k", kv, D), ("v", kv, D), ("o", D, q)):
            shard[f"{at}.self_attn.{name}_proj.weight"] = normal(rows, width)
        shard[f"{at}.block_sparse_moe.gate.weight"] = normal(E, D)
        for e in range(E):
            for name, rows, width in (("w1", F, D), ("w2", D, F), ("w3", F, D)):
                shard[f"{at}.block_sparse_moe.experts.{e}.{name}.weight"] = normal(rows, width)
        yield shard
