"""kvpress' side: which keys its methods keep, what the rest of each text then costs, seconds and memory.

    python kvpress_side.py MODEL TEXTS.npz OUT.npz METHOD

Imports torch, transformers and kvpress, not our packages; run in an environment of its own. MODEL is a
directory in the Hugging Face layout. TEXTS.npz holds ids_BT, prompt and kept. Attention is computed eagerly
where a method needs weights, which is how kvpress gets them.
"""

import resource
import sys
import time

import numpy as np
import torch
import transformers
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    ObservedAttentionPress,
    ScorerPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

PRESSES = {
    "h2o_mean": ObservedAttentionPress,
    "snapkv": lambda ratio: SnapKVPress(ratio, window_size=32, kernel_size=5),
    "tova": TOVAPress,
    "streaming": lambda ratio: StreamingLLMPress(ratio, n_sink=4),
    "knorm": KnormPress,
    "keydiff": KeyDiffPress,
    "expected": lambda ratio: ExpectedAttentionPress(ratio, n_future_positions=512, n_sink=4, epsilon=0.0),
}
EAGER = ("h2o_mean",)


def main(model_path: str, texts: str, out: str, method: str) -> None:
    given = np.load(texts)
    ids_BT, prompt, kept = given["ids_BT"], int(given["prompt"]), int(given["kept"])
    attention = "eager" if method in EAGER else "sdpa"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation=attention
    ).eval()
    # int(T * (1 - ratio)) keys are kept; half a key more makes that `kept` whatever the rounding.
    press = PRESSES[method](1 - (kept + 0.5) / prompt)
    indices: list[np.ndarray] = []
    score = type(press).score

    def recorded(self: ScorerPress, *arguments: torch.Tensor) -> torch.Tensor:
        scores = score(self, *arguments)
        indices.append(scores.topk(kept, dim=-1).indices[0].sort(dim=-1).values.numpy())
        return scores

    type(press).score = recorded
    keeps, nats, seconds = [], [], []
    for row in torch.from_numpy(ids_BT.astype(np.int64)):
        indices.clear()
        with torch.no_grad():
            started = time.perf_counter()
            cache = transformers.DynamicCache()
            with press(model):
                first = model(row[None, :prompt], past_key_values=cache).logits[0, -1:]
            seconds.append(time.perf_counter() - started)
            positions = torch.arange(prompt, len(row))[None]
            rest = model(row[None, prompt:], past_key_values=cache, position_ids=positions).logits[0, :-1]
        logits = torch.cat([first, rest]).double()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, row[prompt:, None])[:, 0]
        keeps.append(np.stack(indices))
        nats.append(-chosen.numpy())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(out, kept_BLKS=np.stack(keeps), nats_BS=np.stack(nats), prefill_s=seconds, peak_bytes=peak)


if __name__ == "__main__":
    main(*sys.argv[1:])
