"""The llama.cpp side of `python -m serving.bench --only=real`; see `real_peer`.

load: {"gguf": FILE, "threads": 2, "kv": "f16"}, or {"folder": DIR} of a Llama-shaped model in float32, of
which a float32 GGUF copy is written beside the weights. All prompts go in one after the other, then all
decode together: one llama.cpp sequence each.
"""

import ctypes
import types
from pathlib import Path
from typing import Any

import llama_cpp
from llama_serve import QUIET, best, context, put, write_gguf
from real_peer import Answer, TokenTimes, serve


def load(about: dict[str, Any]) -> tuple[Any, str]:
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    path = about.get("gguf")
    if path is None:
        copy = Path(about["folder"]) / "model.gguf"
        path = copy if copy.exists() else write_gguf(Path(about["folder"]))
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    side = types.SimpleNamespace(model=model, vocab=vocab, kv=about["kv"], threads=about["threads"])
    return side, f"llama-cpp-python {llama_cpp.__version__}"


def run(side: Any, prompts: list[list[int]], new: int) -> Answer:
    flash = int(side.kv == "f16")
    ctx = context(side.model, {"prompts": prompts, "new": new, "kv": side.kv, "flash": flash})
    llama_cpp.llama_set_n_threads(ctx, side.threads, side.threads)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    noted = TokenTimes(len(prompts))

    def step() -> None:
        if status := llama_cpp.llama_decode(ctx, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    try:
        for row, ids in enumerate(prompts):
            for at in range(0, len(ids), 512):
                part = ids[at : at + 512]
                last = [at + i == len(ids) - 1 for i in range(len(part))]
                put(batch, part, range(at, at + len(part)), [row] * len(part), last)
                step()
            noted.add(row, best(ctx, 1, side.vocab))
        for _ in range(new - 1):
            places = [len(ids) + len(out) - 1 for ids, out in zip(prompts, noted.outputs)]
            newest = [out[-1] for out in noted.outputs]
            put(batch, newest, places, range(len(prompts)), [1] * len(prompts))
            step()
            for row, token in enumerate(best(ctx, len(prompts), side.vocab)):
                noted.add(row, [token])
        return noted.answer()
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(ctx)


if __name__ == "__main__":
    serve(load, run)
