"""The transformers side of `python -m mixattn.bench`: answers timing requests, one JSON line each way.

    {"model": DIR}                                                        -> {"parameters": n}
    {"batch": 32, "prompt": 300, "new": 17, "cache": "dynamic"}           -> {"prefill_s": s, "step_s": [..]}

Greedy, no stop, float32; OMP_NUM_THREADS sets the threads.
"""

import json
import sys
import time
from itertools import pairwise

import torch
import transformers
from transformers import AutoModelForCausalLM, logging
from transformers.generation.streamers import BaseStreamer

logging.set_verbosity_error()
logging.disable_progress_bar()


class Clock(BaseStreamer):
    """Records when `generate` emits the prompt and then each step's tokens."""

    def __init__(self):
        self.seen_s: list[float] = []

    def put(self, value):
        self.seen_s.append(time.perf_counter())

    def end(self):
        pass


@torch.no_grad()
def timed(model, ask: dict) -> dict:
    """Seconds to the first token, and of every step after it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (ask["batch"], ask["prompt"]), generator=generator)
    clock = Clock()
    model.generate(
        tokens,
        streamer=clock,
        attention_mask=torch.ones_like(tokens),
        min_new_tokens=ask["new"],
        max_new_tokens=ask["new"],
        do_sample=False,
        pad_token_id=0,
        cache_implementation=None if ask["cache"] == "dynamic" else ask["cache"],
        disable_compile=True,
    )
    prompt_s, first_s, *rest_s = clock.seen_s
    return {"prefill_s": first_s - prompt_s, "step_s": [b - a for a, b in pairwise([first_s, *rest_s])]}


def main() -> None:
    model = None
    for line in sys.stdin:
        ask = json.loads(line)
        if "model" in ask:
            model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=torch.float32).eval()
            answer = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
                "threads": torch.get_num_threads(),
            }
        else:
            answer = timed(model, ask)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
