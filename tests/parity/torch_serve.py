"""The transformers side of `python -m serving.bench --only=transformers`; one JSON line each way.

    {"model": DIR}                                                    -> {"versions": ..., "threads": n}
    {"how": "static", "batch": 16, "requests": [[ids, new], ...]}     -> {"seconds": s, "outputs": [ids, ...]}
    {"how": "continuous", "batch": 32, "attention": "sdpa", "requests": ...}    -> the same

Greedy, no early stop, float32; OMP_NUM_THREADS sets the threads. `static` pads each batch on the left and
runs it until its longest request is done. `continuous` submits requests one by one to the manager that
`generate_batch` uses, because `generate_batch` itself gives all requests one length.
"""

import json
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, logging

logging.set_verbosity_error()
logging.disable_progress_bar()

PAD = 0


@torch.no_grad()
def static(model, ask: dict) -> list[list[int]]:
    model.set_attn_implementation("sdpa")
    outputs = []
    for at in range(0, len(ask["requests"]), ask["batch"]):
        part = ask["requests"][at : at + ask["batch"]]
        width = max(len(ids) for ids, _ in part)
        tokens = torch.tensor([[PAD] * (width - len(ids)) + ids for ids, _ in part])
        real = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in part])
        new = max(new for _, new in part)
        options = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": PAD}
        drawn = model.generate(tokens, attention_mask=real, disable_compile=True, **options)
        outputs += [row[width : width + new].tolist() for row, (_, new) in zip(drawn, part)]
    return outputs


@torch.no_grad()
def continuous(model, ask: dict) -> list[list[int]]:
    model.set_attn_implementation(ask["attention"])
    requests, page = ask["requests"], 256
    pages = sum(-(-(len(ids) + new) // page) for ids, new in requests)
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=pages + 8,
        max_batch_tokens=ask["step_tok"],
        max_requests_per_batch=ask["batch"],
        allow_block_sharing=False,
        auto_switch_to_flash=False,
        return_logprobs=False,
    )
    generation = GenerationConfig(
        do_sample=False, max_new_tokens=max(new for _, new in requests), eos_token_id=-1
    )
    done: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config, block=True, timeout=5, warmup=False
    ) as manager:
        for i, (ids, new) in enumerate(requests):
            manager.add_request(ids, request_id=str(i), max_new_tokens=new, eos_token_id=-1)
        while len(done) < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(result.error)
                done[result.request_id] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError("the generation thread ended early")
    return [done[str(i)] for i in range(len(requests))]


def main() -> None:
    model = None
    for line in sys.stdin:
        ask = json.loads(line)
        if "model" in ask:
            model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=torch.float32).eval()
            versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
            answer = {"versions": versions, "threads": torch.get_num_threads()}
        else:
            begin = time.perf_counter()
            try:
                outputs = (static if ask["how"] == "static" else continuous)(model, ask)
                answer = {"seconds": time.perf_counter() - begin, "outputs": outputs}
            except Exception as why:  # reported in the other side's table
                answer = {"error": f"{type(why).__name__}: {why}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
