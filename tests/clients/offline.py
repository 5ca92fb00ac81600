"""What lm_eval should find: log-likelihoods from the model's own logits, without a server."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from mixattn import Transformer, generate, hf

LENGTH = 96
CONTEXTS = ("the quick brown", "naïve café", "def f(x):\n    return", "日本語の文字", "Ωmega ∑ 😀", "a")
CONTINUATIONS = (" fox jumps", " über café", " 日本", " x + 1", "é")


def expected(checkpoint: Path, longest: int) -> dict[str, Any]:
    """Pairs with the continuation's log-likelihood and whether greedy decoding says it, and whole texts."""
    model, words = hf.load(checkpoint)[0], Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    pairs = [_pair(model, words, a, b) for a in CONTEXTS for b in CONTINUATIONS]
    pairs += [_pair(model, words, a, b) for a in CONTEXTS for b in _greedy(model, words, a)]
    texts = [_text(model, words, a + b) for a, b in zip(CONTEXTS, CONTINUATIONS)]
    return {"max_length": longest, "pairs": [p for p in pairs if p["tokens"] > 0], "texts": texts}


def _pair(model: Transformer, words: Tokenizer, context: str, continuation: str) -> dict[str, Any]:
    before = words.encode(context).ids
    start = len(before)
    # Where a token reaches over the border, the harness still puts the context's own ids first.
    ids = before + words.encode(context + continuation).ids[start:]
    value, greedy = _score(model, ids, start)
    return {
        "context": context,
        "continuation": continuation,
        "value": value,
        "greedy": greedy,
        "tokens": len(ids) - start,
    }


def _text(model: Transformer, words: Tokenizer, text: str) -> dict[str, Any]:
    """A text after the end token, as the harness scores whole documents."""
    ids = [0, *words.encode(text).ids]
    return {"text": text, "value": _score(model, ids, 1)[0], "tokens": len(ids) - 1}


def _greedy(model: Transformer, words: Tokenizer, context: str) -> list[str]:
    """Continuations that greedy decoding makes, where text becomes the same ids again."""
    ids = words.encode(context).ids
    [made] = generate(model, [ids], max_new_tokens=3)
    found = []
    for n in range(1, len(made) + 1):
        text = words.decode(ids + made[:n], skip_special_tokens=False)
        if text.startswith(context) and words.encode(text).ids == ids + made[:n]:
            found.append(text[len(context) :])
    return found


def _score(model: Transformer, ids: list[int], start: int) -> tuple[float, bool]:
    padded_1T = np.zeros((1, LENGTH), np.int32)
    padded_1T[0, : len(ids)] = ids
    log_p_TV = np.asarray(jax.nn.log_softmax(model(padded_1T)[0].astype("float32")), np.float64)
    at = range(start, len(ids))
    value = sum(log_p_TV[t - 1, ids[t]] for t in at)
    return float(value), all(int(log_p_TV[t - 1].argmax()) == ids[t] for t in at)


def write(checkpoint: Path, longest: int, path: Path) -> None:
    path.write_text(json.dumps(expected(checkpoint, longest)), encoding="utf-8")
