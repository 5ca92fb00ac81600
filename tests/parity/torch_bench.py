"""The transformers side of `python -m mixattn.bench`: answers timing requests, one JSON line each way.

    {"model": DIR}                                                        -> {"parameters": n}
    {"batch": 32, "prompt": 300, "new": 34, "cache": "dynamic"}           -> {"seconds": s}

Greedy, no stop, float32; threads as OMP_NUM_THREADS says.
"""

import json
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, logging

logging.set_verbosity_error()
logging.disable_progress_bar()


@torch.no_grad()
def seconds(model, ask: dict) -> float:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (ask["batch"], ask["prompt"]), generator=generator)
    begin = time.perf_counter()
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        min_new_tokens=ask["new"],
        max_new_tokens=ask["new"],
        do_sample=False,
        pad_token_id=0,
        cache_implementation=None if ask["cache"] == "dynamic" else ask["cache"],
        disable_compile=True,
    )
    return time.perf_counter() - begin


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
            answer = {"seconds": seconds(model, ask)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
