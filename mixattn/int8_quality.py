"""What 8-bit weights and activations cost a model, against its float form.

    python -m mixattn.int8_quality --model=models/smollm2 --out=results/int8.csv

Nats per token on rows of Python's reference manual, the logits' error, and how many tokens greedy answers to
50 beginnings of such text agree. About five minutes on one core.
"""

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn import generate, hf
from mixattn.cache.narrow_sequence import NarrowSequence
from mixattn.model import Transformer
from mixattn.quantize import quantize, weight_bytes
from mixattn.text import reference_manual
from mixattn.tools import cli
from pallas_kernels import results

_MODEL = flags.DEFINE_string("model", "models/smollm2", "Hugging Face directory or GGUF file.")
_OUT = flags.DEFINE_string("out", "results/int8.csv", "File for the figures.")
_ROWS = flags.DEFINE_integer("rows", 32, "Rows of 256 tokens for nats.", lower_bound=1)
_PROMPTS = flags.DEFINE_integer("prompts", 50, "Beginnings that greedy answers continue.", lower_bound=1)
ROW_TOK, PROMPT_TOK, ANSWER_TOK, BATCH = 256, 48, 32, 4

CASES = [
    ("float", ""),
    ("int8", ""),
    ("int8, not smoothed", ""),
    ("float", "bfloat16"),
    ("float", "int8"),
    ("int8", "int8"),
]

type Logits = Callable[[np.ndarray], np.ndarray]  # tokens_BT -> logits_BTV


def logits_of(model: Transformer, kv_dtype: str = "") -> Logits:
    """Teacher-forced logits; `kv_dtype`: with K/V as the engine stores them in that type."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params: nnx.State, tokens_BT: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params)
        cache = NarrowSequence({}, stored=kv_dtype) if kv_dtype else None
        return model.head(model.forward(tokens_BT, cache=cache).hidden_BTD)

    return lambda tokens_BT: np.asarray(run(params, jnp.asarray(tokens_BT)))


def nats(logits_BTV: np.ndarray, tokens_BT: np.ndarray) -> np.ndarray:
    """Each row's mean of -log p of its next tokens, in float64."""
    x = logits_BTV[:, :-1].astype(np.float64)
    top = x.max(axis=-1, keepdims=True)
    lse = top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))
    taken = np.take_along_axis(x, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return (lse - taken).mean(axis=1)


def compare(want: Logits, got: Logits, rows_RT: np.ndarray) -> dict[str, float]:
    """Figures of one model beside its float form, a few rows at a time."""
    parts: dict[str, list[float]] = {"nats": [], "float_nats": [], "square": [], "variance": [], "same": []}
    for start in range(0, len(rows_RT), BATCH):
        tokens = rows_RT[start : start + BATCH]
        a, b = want(tokens), got(tokens)
        parts["float_nats"] += nats(a, tokens).tolist()
        parts["nats"] += nats(b, tokens).tolist()
        parts["square"].append(float(np.mean(np.square(a - b))))
        parts["variance"].append(float(np.var(a)))
        parts["same"].append(float(np.mean(a.argmax(-1) == b.argmax(-1))))
    mean = {name: float(np.mean(values)) for name, values in parts.items()}
    return {
        "nats": mean["nats"],
        "nats_lost": mean["nats"] - mean["float_nats"],
        "logit_error": float(np.sqrt(mean["square"] / mean["variance"])),
        "same_best_token": mean["same"],
    }


def agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> dict[str, float]:
    """Of greedy answers: the share that is equal, and the mean share of tokens before a difference."""
    prefix = [next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), len(x)) for x, y in zip(one, other)]
    return {
        "answers_equal": float(np.mean([list(x) == list(y) for x, y in zip(one, other)])),
        "tokens_before_difference": float(np.mean([n / len(x) for n, x in zip(prefix, one)])),
    }


def main() -> None:
    path = Path(_MODEL.value)
    if not path.exists():
        raise ValueError(f"{path} does not exist; `make model` fetches models/smollm2")
    ids = hf.encode(hf.load_tokenizer(path), reference_manual())
    rows_RT = np.array(ids[: _ROWS.value * ROW_TOK]).reshape(-1, ROW_TOK)
    rng = random.Random(0)
    starts = [rng.randrange(len(rows_RT) * ROW_TOK, len(ids) - PROMPT_TOK) for _ in range(_PROMPTS.value)]
    prompts = [ids[start : start + PROMPT_TOK] for start in starts]
    model, _ = hf.load(path)
    want, answers = logits_of(model), generate(model, prompts, ANSWER_TOK)
    rows: list[dict[str, object]] = []
    small = {"float": model, "int8": quantize(model), "int8, not smoothed": quantize(model, smooth=False)}
    for name, kv_dtype in CASES:
        found = compare(want, logits_of(small[name], kv_dtype), rows_RT)
        if not kv_dtype:
            found |= agreement(
                answers, answers if name == "float" else generate(small[name], prompts, ANSWER_TOK)
            )
        mib = round(weight_bytes(small[name]) / 2**20, 1)
        rows.append({"weights": name, "kv": kv_dtype or "float32", "mib": mib, **_rounded(found)})
        print(rows[-1], file=sys.stderr, flush=True)
    sizes = f"--rows={_ROWS.value} --prompts={_PROMPTS.value}"
    about = f"python -m mixattn.int8_quality --model={_MODEL.value} {sizes}"
    text = "Python's reference manual (pydoc_data.topics), rows of 256 tokens; answers of 32 tokens"
    results.write_csv(_OUT.value, rows, about=about, seed=0, text=text)


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    cli.run(main)
