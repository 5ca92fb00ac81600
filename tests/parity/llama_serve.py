"""The llama.cpp side of `python -m serving.bench --only=llama`: decodes a batch, one JSON line each way.

    {"model": DIR}                                                -> {"versions": ..., "system": ...}
    {"prompts": [ids, ...], "new": 33, "kv": "f16", "flash": 1}   -> {"step_s": [s, ...], "outputs": [...]}

DIR is a Llama-shaped Hugging Face directory in float32; a float32 GGUF copy is written beside the weights.
Imports llama-cpp-python and gguf, not our packages. One llama.cpp sequence per prompt, greedy. A step fills
the batch, calls `llama_decode`, and takes the largest logit of each row. OMP_NUM_THREADS sets the threads.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(directory: Path):
    """Yields the name and array of every tensor of a float32 safetensors file."""
    raw = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])
    for name, about in head.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            data = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.float32)
            yield name.removesuffix(".weight"), data.reshape(about["shape"])


def interleaved(weight, heads: int):
    """Reorders rows from rotating the halves of a head to rotating adjacent pairs."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(directory: Path) -> Path:
    config = json.loads((directory / "config.json").read_text())
    path = directory / "model.gguf"
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, array in tensors(directory):
        if name in TOP:
            target = TOP[name]
        else:
            _, _, layer, part = name.split(".", 3)
            target = f"blk.{layer}.{NAMES[part]}"
            if NAMES[part] in heads:
                array = interleaved(array, heads[NAMES[part]])
        out.add_tensor(f"{target}.weight", np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def load(directory: Path):
    params = llama_cpp.llama_model_default_params()
    return llama_cpp.llama_model_load_from_file(str(write_gguf(directory)).encode(), params)


def context(model, ask: dict):
    rows = len(ask["prompts"])
    longest = max(map(len, ask["prompts"])) + ask["new"]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = rows * -(-longest // 64) * 64
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = rows
    params.n_threads = params.n_threads_batch = int(os.environ.get("OMP_NUM_THREADS", "1"))
    params.type_k = params.type_v = {"f32": 0, "f16": 1}[ask["kv"]]
    params.flash_attn_type = ask["flash"]
    params.kv_unified = ask.get("unified", False)
    params.no_perf = True
    return llama_cpp.llama_init_from_model(model, params)


def put(batch, tokens, positions, rows, wanted) -> None:
    batch.n_tokens = len(tokens)
    for i, (token, position, row, want) in enumerate(zip(tokens, positions, rows, wanted)):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, want
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, row


def best(ctx, n: int, vocab: int) -> list[int]:
    """The largest logit of each of the `n` outputs of the last call."""
    logits = llama_cpp.llama_get_logits(ctx)
    return np.ctypeslib.as_array(logits, shape=(n, vocab)).argmax(-1).tolist()


def serve(model, vocab: int, ask: dict) -> dict:
    ctx, prompts = context(model, ask), ask["prompts"]
    batch = llama_cpp.llama_batch_init(512, 0, 1)

    def run() -> None:
        if status := llama_cpp.llama_decode(ctx, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    try:
        outputs: list[list[int]] = []
        for row, ids in enumerate(prompts):
            for at in range(0, len(ids), 512):
                part = ids[at : at + 512]
                last = [at + i == len(ids) - 1 for i in range(len(part))]
                put(batch, part, range(at, at + len(part)), [row] * len(part), last)
                run()
            outputs.append(best(ctx, 1, vocab))
        seconds = []
        for _ in range(ask["new"] - 1):
            begin = time.perf_counter()
            places = [len(ids) + len(out) - 1 for ids, out in zip(prompts, outputs)]
            put(batch, [out[-1] for out in outputs], places, range(len(prompts)), [1] * len(prompts))
            run()
            for out, token in zip(outputs, best(ctx, len(prompts), vocab)):
                out.append(token)
            seconds.append(time.perf_counter() - begin)
        return {"step_s": seconds, "outputs": outputs}
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(ctx)


def main() -> None:
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model, vocab = None, 0
    for line in sys.stdin:
        ask = json.loads(line)
        if "model" in ask:
            directory = Path(ask["model"])
            model = load(directory)
            vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
            system = llama_cpp.llama_print_system_info().decode()
            answer = {"versions": f"llama-cpp-python {llama_cpp.__version__}", "system": system}
        else:
            try:
                answer = serve(model, vocab, ask)
            except Exception as why:  # reported in the other side's table
                answer = {"error": f"{type(why).__name__}: {why}"}
        print(json.dumps(answer), flush=True)


QUIET = llama_cpp.llama_log_callback(lambda *_: None)

if __name__ == "__main__":
    main()
