"""GGUF files in our reader and in llama.cpp: greedy tokens, logits and token ids must agree.

    python -m tests.parity.gguf_oracle --gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf --out=results/gguf.csv

Needs .venv-llama (`make parity-gguf` makes it). Rows: the real model as float32 GGUF; a small random model
of every architecture; the real vocabulary under every pre-tokenizer, and a SentencePiece one. Exits with 1 if
a row fails. Tolerance: logits within 1e-3 of each other, absolute.

llama.cpp reads GELU from a table in float16. Gemma's rows say the difference with our exact GELU, and are
judged with the same table on our side.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx

from mixattn import Transformer, generate, hf
from mixattn.hf.gguf_file import GGUFFile
from mixattn.tools import cli
from mixattn.tools.baseline_process import QueryFn, peer
from pallas_kernels.results import write_csv
from tests.mixattn.gguf_files import write_gguf, write_vocabulary

HERE = Path(__file__).parent
TOLERANCE = 1e-3
NEW = 16
QUESTIONS = [
    f"{verb} {topic}."
    for verb in (
        "Explain",
        "Write a short poem about",
        "List three facts about",
        "Translate into French:",
        "Why is",
    )
    for topic in (
        "the sea",
        "a compiler",
        "prime numbers",
        "bread",
        "Paris",
        "rain",
        "12 times 12",
        "music",
        "trees",
        "gold",
    )
]
# Fields that llama.cpp fixes in code (a scale) or does not have (the window of Mistral).
FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 6},
    "gemma3_text": {"query_pre_attn_scalar": 6},
}
PRE_TOKENIZERS = (
    "smollm",
    "gpt-2",
    "starcoder",
    "llama-bpe",
    "qwen2",
    "tekken",
    "command-r",
    "deepseek-r1-qwen",
)

_GGUF = flags.DEFINE_string("gguf", None, "The real model: a GGUF file.")
_OUT = flags.DEFINE_string("out", "results/gguf.csv", "CSV to write.")
_PEER = flags.DEFINE_string("peer", ".venv-llama/bin/python", "Python of the llama.cpp environment.")
_ONLY = flags.DEFINE_list("only", ["tokens", "families", "model"], "Parts to run.")


def compared(llama: QueryFn, path: Path, prompts: list[list[int]], folder: Path) -> dict[str, object]:
    """Our greedy tokens and teacher-forced logits beside llama.cpp's, on one file."""
    asked(llama, model=str(path), vocab_only=False)
    theirs = asked(llama, prompts=prompts, new=NEW, to=str(folder / "logits.npy"))["outputs"]
    logits = np.load(folder / "logits.npy", mmap_mode="r")
    model, config = hf.load(path)
    ours = generate(model, prompts, max_new_tokens=NEW)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    exact = judged = largest_difference(model, prompts, theirs, logits)
    if config.activation == "gelu":
        with mock.patch("jax.nn.gelu", gelu_by_table):
            judged = largest_difference(model, prompts, theirs, logits)
    passed = same == len(prompts) and judged <= TOLERANCE
    told = {"largest_logit_difference": f"{exact:.2e}", "with_their_gelu": f"{judged:.2e}"}
    return {"cases": len(prompts), "equal": same, **told, "passed": passed}


def largest_difference(
    model: Transformer, prompts: list[list[int]], outputs: list[list[int]], logits: np.ndarray
) -> float:
    """Between our teacher-forced logits of every output and theirs [prompt, new, V]."""
    forward, length = nnx.jit(lambda model, tokens: model(tokens)), max(map(len, prompts)) + NEW
    largest = 0.0
    for i, (prompt, output) in enumerate(zip(prompts, outputs)):
        row = np.zeros((1, length), np.int32)  # causal: what follows the last position does not matter
        row[0, : len(prompt) + NEW - 1] = [*prompt, *output[:-1]]
        logits_TV = np.asarray(forward(model, row))[0, len(prompt) - 1 : len(prompt) + NEW - 1]
        largest = max(largest, float(np.abs(logits_TV - logits[i]).max()))
    return largest


_exact_gelu = jax.nn.gelu


def gelu_by_table(x: jax.Array, approximate: bool = True) -> jax.Array:
    """GELU as llama.cpp's CPU backend has it: argument and value rounded to float16."""
    half = x.astype(jnp.float16).astype(jnp.float32)
    return _exact_gelu(half, approximate=approximate).astype(jnp.float16).astype(x.dtype)


def asked(llama: QueryFn, **fields: object) -> dict:
    told = llama(**fields)
    if "error" in told:
        raise ValueError(f"llama.cpp: {told['error']}")
    return told


def families(llama: QueryFn, folder: Path) -> list[dict]:
    rows = []
    for family, change in FAMILIES.items():
        path = write_gguf(HERE / "fixtures" / family, folder / f"{family}.gguf", config=change)
        prompts = np.random.default_rng(0).integers(0, 37, (6, 20)).tolist()
        rows.append({"what": f"random {family}, greedy and logits", **compared(llama, path, prompts, folder)})
    return rows


def token_ids(llama: QueryFn, folder: Path, real: Path) -> list[dict]:
    """Ids of every line of the nasty file, and of all of it."""
    text = (HERE / "nasty.txt").read_bytes().decode()
    texts = [*text.split("\n"), text]
    metadata = GGUFFile(real).metadata
    vocabulary = {k.removeprefix("tokenizer."): v for k, v in metadata.items() if k.startswith("tokenizer.")}
    files = {
        f"{pre} pre-tokenizer": write_vocabulary(folder / f"{pre}.gguf", vocabulary | {"ggml.pre": pre})
        for pre in PRE_TOKENIZERS
    }
    files["SentencePiece"] = write_vocabulary(folder / "spm.gguf", sentencepiece(vocabulary["ggml.tokens"]))
    rows = []
    for what, path in files.items():
        asked(llama, model=str(path), vocab_only=True)
        theirs = asked(llama, texts=texts)["ids"]
        tokenizer = hf.load_tokenizer(path)
        ours = [tokenizer.encode(part, add_special_tokens=False).ids for part in texts]
        wrong = [part for part, a, b in zip(texts, ours, theirs) if a != b]
        for part in wrong:
            print(f"{what}: {part[:60]!r}", file=sys.stderr)
        row = {"cases": len(texts), "equal": len(texts) - len(wrong), "passed": not wrong}
        rows.append({"what": f"token ids, {what}", **row})
    return rows


def sentencepiece(tokens: list[str]) -> dict:
    """A SentencePiece vocabulary: bytes, and the plain words of a byte-level one, scored by their order."""
    words = [
        t.replace("\u0120", "\u2581")
        for t in tokens
        if t.replace("\u0120", "").isascii() and t.replace("\u0120", "").isalpha()
    ]
    words = list(dict.fromkeys(["\u2581", *(c for c in map(chr, range(33, 127))), *words[:8000]]))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    return {
        "ggml.model": "llama",
        "ggml.tokens": pieces,
        "ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }


def real_model(llama: QueryFn, folder: Path, real: Path) -> list[dict]:
    path = folder / "f32.gguf"
    asked(llama, f32=str(real), to=str(path))
    tokenizer = hf.load_tokenizer(path)
    prompts = [tokenizer.encode(question, add_special_tokens=False).ids for question in QUESTIONS]
    row = compared(llama, path, prompts, folder)
    return [{"what": f"{real.stem} as float32 GGUF, greedy and logits", **row}]


def main() -> None:
    if not _GGUF.value or not Path(_GGUF.value).is_file():
        raise ValueError(f"--gguf={_GGUF.value} is not a file; `make model` fetches one")
    real, rows = Path(_GGUF.value), []
    command = _PEER.value, str(HERE / "llama_oracle.py")
    with tempfile.TemporaryDirectory() as name, peer(command[1], command) as llama:
        folder = Path(name)
        if "tokens" in _ONLY.value:
            rows += token_ids(llama, folder, real)
        if "families" in _ONLY.value:
            rows += families(llama, folder)
        if "model" in _ONLY.value:
            rows += real_model(llama, folder, real)
        versions = (
            asked(llama, model=str(folder / "smollm.gguf"), vocab_only=True)["versions"]
            if "tokens" in _ONLY.value
            else ""
        )
    command_line = "python -m tests.parity.gguf_oracle --gguf=SmolLM2-135M-Instruct.Q4_1.gguf"
    write_csv(_OUT.value, rows, command=command_line, peer=versions, tolerance=TOLERANCE, new_tokens=NEW)
    print(json.dumps(rows, indent=1))
    if failed := [row["what"] for row in rows if not row["passed"]]:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.run(main)
