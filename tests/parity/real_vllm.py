"""The vLLM side of `python -m serving.bench --only=real`; see `real_peer`.

load: {"folder": DIR in the Hugging Face layout, "threads": 2, "dtype": "float32"}. The engine steps in this
process, without its prefix cache, since no prompt comes twice.
"""

import os
from typing import Any

from real_peer import Answer, TokenTimes, serve

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def load(about: dict[str, Any]) -> tuple[Any, str]:
    import vllm  # takes seconds, which belong to the start

    llm = vllm.LLM(
        about["folder"],
        dtype=about["dtype"],
        max_model_len=2304,
        max_num_seqs=32,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    return llm, f"vllm {vllm.__version__}"


def run(llm: Any, prompts: list[list[int]], new: int) -> Answer:
    import vllm

    sampling = vllm.SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    engine = llm.llm_engine
    noted, taken = TokenTimes(len(prompts)), [0] * len(prompts)
    for row, ids in enumerate(prompts):
        engine.add_request(str(row), {"prompt_token_ids": ids}, sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            # An output's id may have a suffix of the engine's own.
            row, ids = int(output.request_id.split("-")[0]), list(output.outputs[0].token_ids)
            noted.add(row, ids[taken[row] :])
            taken[row] = len(ids)
    return noted.answer()


if __name__ == "__main__":
    serve(load, run)
