"""The transformers side of `python -m serving.bench --only=real`; see `real_peer`.

load: {"folder": DIR in the Hugging Face layout, "threads": 2, "dtype": "float32"}. A static batch of prompts
of one length: what `generate` does, with the time of every token.
"""

from typing import Any

import torch
import transformers
from real_peer import Answer, TokenTimes, serve


def load(about: dict[str, Any]) -> tuple[Any, str]:
    torch.set_num_threads(about["threads"])
    dtype = getattr(torch, about["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(about["folder"], dtype=dtype).eval()
    return model, f"transformers {transformers.__version__}, torch {torch.__version__}"


@torch.inference_mode()
def run(model: Any, prompts: list[list[int]], new: int) -> Answer:
    tokens = torch.tensor(prompts)
    cache = transformers.DynamicCache(config=model.config)
    noted = TokenTimes(len(prompts))
    for _ in range(new):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in enumerate(tokens[:, 0].tolist()):
            noted.add(row, [token])
    return noted.answer()


if __name__ == "__main__":
    serve(load, run)
