"""The OpenVINO GenAI side of `python -m tests.parity.eviction`: its block-wise cache eviction.

    python openvino_eviction.py ASK.json ANSWER.json

ASK: {"gguf": FILE, "prompts": [ids, ...], "new": 16, "blocks": 0, "budgets": [null, {"start": 32, "recent":
32, "total": 96}, ...]}; blocks bounds the pool, 0 = as many as are needed. ANSWER: for each budget
{"outputs": [ids, ...], "seconds": s, "most_at_once": n}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


def pipeline(ask: dict[str, Any], budget: dict[str, int] | None) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = ask["blocks"]
    if budget:
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(
            budget["start"], budget["recent"], budget["total"], genai.AggregationMode.SUM
        )
    return genai.ContinuousBatchingPipeline(ask["gguf"], scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1})


def answers(pipe: Any, prompts: list[list[int]], new: int) -> dict[str, Any]:
    config = genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
    handles = [
        pipe.add_request(row, openvino.Tensor(np.array([ids], np.int64)), config)
        for row, ids in enumerate(prompts)
    ]
    outputs: list[list[int]] = [[] for _ in prompts]
    began, most = time.perf_counter(), 0
    while pipe.has_non_finished_requests():
        pipe.step()
        most = max(most, pipe.get_metrics().scheduled_requests)
        for row, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    outputs[row] += list(output.generated_ids)
    return {"outputs": outputs, "seconds": time.perf_counter() - began, "most_at_once": most}


def main(ask_path: str, answer_path: str) -> None:
    ask = json.loads(Path(ask_path).read_text(encoding="utf-8"))
    said = []
    for budget in ask["budgets"]:
        pipe = pipeline(ask, budget)
        answers(pipe, [ask["prompts"][0][:40]], 2)  # compiles
        said.append(answers(pipe, ask["prompts"], ask["new"]))
        del pipe
    found = {"versions": f"openvino-genai {genai.__version__}", "budgets": said}
    Path(answer_path).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
