"""The llama.cpp side of `python -m tests.parity.gguf_oracle`: one JSON line each way.

    {"f32": PATH, "to": PATH}               -> {}                    the same model with float32 tensors
    {"model": PATH, "vocab_only": false}    -> {"versions": ...}     the model of the next queries
    {"texts": [text, ...]}                  -> {"ids": [[id, ...], ...]}     special tokens parsed, none added
    {"prompts": [ids, ...], "new": 16, "to": PATH.npy}
        -> {"outputs": [[id, ...], ...]}    greedy; PATH gets the logits of each output [prompt, new, V]

Imports llama-cpp-python, gguf and numpy, not our packages. Keys, values and products are float32.
"""

import ctypes
import json
import sys

import gguf
import llama_cpp
import numpy as np

N = llama_cpp


def rewrite(source: str, target: str) -> None:
    """Writes every tensor dequantised; the metadata stays, apart from the file type."""
    reader = gguf.GGUFReader(source)
    out = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (
            "general.architecture",
            "general.file_type",
        ):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            out.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        out.add_tensor(
            tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def load(path: str, vocab_only: bool):
    params = N.llama_model_default_params()
    params.vocab_only = vocab_only
    model = N.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise ValueError(f"llama.cpp cannot load {path}")
    return model


def tokenize(model, text: str) -> list[int]:
    vocab, data = N.llama_model_get_vocab(model), text.encode()
    room = len(data) + 16
    ids = (N.llama_token * room)()
    count = N.llama_tokenize(vocab, data, len(data), ids, room, False, True)
    assert count >= 0, "the buffer is too small"
    return list(ids[:count])


def greedy(model, prompt: list[int], new: int) -> tuple[list[int], np.ndarray]:
    params = N.llama_context_default_params()
    params.n_ctx = -(-(len(prompt) + new) // 64) * 64
    params.n_batch = params.n_ubatch = max(64, len(prompt))
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    params.no_perf = True
    ctx = N.llama_init_from_model(model, params)
    width = N.llama_vocab_n_tokens(N.llama_model_get_vocab(model))
    batch = N.llama_batch_init(max(64, len(prompt)), 0, 1)
    outputs: list[int] = []
    rows, tokens, at = [], prompt, 0
    try:
        while len(outputs) < new:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, i == len(tokens) - 1
            if status := N.llama_decode(ctx, batch):
                raise RuntimeError(f"llama_decode returned {status}")
            rows.append(np.ctypeslib.as_array(N.llama_get_logits(ctx), shape=(width,)).copy())
            at += len(tokens)
            outputs.append(int(rows[-1].argmax()))
            tokens = outputs[-1:]
    finally:
        N.llama_batch_free(batch)
        N.llama_free(ctx)
    return outputs, np.stack(rows)


def answer(ask: dict, model):
    if "f32" in ask:
        rewrite(ask["f32"], ask["to"])
        return {}, model
    if "model" in ask:
        return {"versions": f"llama-cpp-python {N.__version__}"}, load(ask["model"], ask["vocab_only"])
    if "texts" in ask:
        return {"ids": [tokenize(model, text) for text in ask["texts"]]}, model
    pairs = [greedy(model, prompt, ask["new"]) for prompt in ask["prompts"]]
    np.save(ask["to"], np.stack([logits for _, logits in pairs]))
    return {"outputs": [outputs for outputs, _ in pairs]}, model


def main() -> None:
    N.llama_log_set(QUIET, ctypes.c_void_p(0))
    N.llama_backend_init()
    model = None
    for line in sys.stdin:
        try:
            told, model = answer(json.loads(line), model)
        except Exception as why:  # reported by the other side
            told = {"error": f"{type(why).__name__}: {why}"}
        print(json.dumps(told), flush=True)


QUIET = N.llama_log_callback(lambda *_: None)

if __name__ == "__main__":
    main()
