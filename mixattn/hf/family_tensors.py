"""Where each family keeps our parameters: tensor names by parameter, within the model or a block.

`{i}` is the layer, `{e}` the expert. An entry without a parameter in the model is not used.
"""

_LAYER = "model.layers.{i}."
LLAMA_TENSORS = {
    "embed.table": "model.embed_tokens.weight",
    "final_norm.gain": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
    "attention_norm.gain": _LAYER + "input_layernorm.weight",
    "ffn_norm.gain": _LAYER + "post_attention_layernorm.weight",
    "attention.q_norm.gain": _LAYER + "self_attn.q_norm.weight",
    "attention.k_norm.gain": _LAYER + "self_attn.k_norm.weight",
    **{f"attention.{x}.kernel": _LAYER + f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attention.{x}.bias": _LAYER + f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"ffn.{x}.kernel": _LAYER + f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"ffn.{x}.bias": _LAYER + f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
}
MIXTRAL_TENSORS = LLAMA_TENSORS | {
    "ffn.router": _LAYER + "block_sparse_moe.gate.weight",
    "ffn.gate": _LAYER + "block_sparse_moe.experts.{e}.w1.weight",
    "ffn.up": _LAYER + "block_sparse_moe.experts.{e}.w3.weight",
    "ffn.down": _LAYER + "block_sparse_moe.experts.{e}.w2.weight",
}
GEMMA_TENSORS = LLAMA_TENSORS | {
    "attention_post_norm.gain": _LAYER + "post_attention_layernorm.weight",
    "ffn_norm.gain": _LAYER + "pre_feedforward_layernorm.weight",
    "ffn_post_norm.gain": _LAYER + "post_feedforward_layernorm.weight",
}
_DECODER = "model.decoder."
_OPT_BLOCK = _DECODER + "layers.{i}."
_OPT_PARTS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
OPT_TENSORS = {
    "embed.table": _DECODER + "embed_tokens.weight",
    "embed.positions": _DECODER + "embed_positions.weight",
    "lm_head.kernel": "lm_head.weight",
    "final_norm.gain": _DECODER + "final_layer_norm.weight",
    "final_norm.bias": _DECODER + "final_layer_norm.bias",
    "attention_norm.gain": _OPT_BLOCK + "self_attn_layer_norm.weight",
    "attention_norm.bias": _OPT_BLOCK + "self_attn_layer_norm.bias",
    "ffn_norm.gain": _OPT_BLOCK + "final_layer_norm.weight",
    "ffn_norm.bias": _OPT_BLOCK + "final_layer_norm.bias",
    **{f"{ours}.kernel": f"{_OPT_BLOCK}{theirs}.weight" for ours, theirs in _OPT_PARTS.items()},
    **{f"{ours}.bias": f"{_OPT_BLOCK}{theirs}.bias" for ours, theirs in _OPT_PARTS.items()},
}
QWEN3_MOE_TENSORS = LLAMA_TENSORS | {
    "ffn.router": _LAYER + "mlp.gate.weight",
    **{f"ffn.{x}": _LAYER + f"mlp.experts.{{e}}.{x}_proj.weight" for x in ("gate", "up", "down")},
}
OLMO2_TENSORS = LLAMA_TENSORS | {
    "attention_post_norm.gain": _LAYER + "post_attention_layernorm.weight",
    "ffn_post_norm.gain": _LAYER + "post_feedforward_layernorm.weight",
}
_QKV, _GATE_UP = _LAYER + "self_attn.qkv_proj.weight", _LAYER + "mlp.gate_up_proj.weight"
PHI3_TENSORS = LLAMA_TENSORS | {
    **{f"attention.{x}.kernel": _QKV for x in "qkv"},
    **{f"ffn.{x}.kernel": _GATE_UP for x in ("gate", "up")},
}
# Parameters that lie in one tensor, in this order.
FUSED = {
    _QKV: ("attention.q.kernel", "attention.k.kernel", "attention.v.kernel"),
    _GATE_UP: ("ffn.gate.kernel", "ffn.up.kernel"),
}
GEMMA1_TENSORS = LLAMA_TENSORS
