"""The OpenVINO GenAI side of `python -m serving.bench --only=real`; see `real_peer`.

load: {"gguf": FILE, "threads": 2, "properties": {...}}, and {"pipeline": "llm"} for `LLMPipeline`, which
takes one request at a time, instead of `ContinuousBatchingPipeline`.
"""

from typing import Any

import numpy as np
import openvino
import openvino_genai
from real_peer import Answer, TokenTimes, serve


def load(about: dict[str, Any]) -> tuple[Any, str]:
    properties = {"INFERENCE_NUM_THREADS": about["threads"]} | about.get("properties", {})
    if about.get("pipeline") == "llm":
        pipe = openvino_genai.LLMPipeline(about["gguf"], "CPU", **properties)
    else:
        scheduler = openvino_genai.SchedulerConfig()
        pipe = openvino_genai.ContinuousBatchingPipeline(about["gguf"], scheduler, "CPU", properties)
    return pipe, f"openvino-genai {openvino_genai.__version__}"


def run(pipe: Any, prompts: list[list[int]], new: int) -> Answer:
    config = openvino_genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
    if isinstance(pipe, openvino_genai.LLMPipeline):
        return _one_by_one(pipe, prompts, config)
    tensors = [openvino.Tensor(np.array([ids], np.int64)) for ids in prompts]
    noted = TokenTimes(len(prompts))
    handles = [pipe.add_request(row, tensor, config) for row, tensor in enumerate(tensors)]
    while pipe.has_non_finished_requests():
        pipe.step()
        for row, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    noted.add(row, list(output.generated_ids))
    return noted.answer()


def _one_by_one(pipe: Any, prompts: list[list[int]], config: Any) -> Answer:
    noted = TokenTimes(len(prompts))

    class Told(openvino_genai.StreamerBase):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

        def write(self, token: Any) -> Any:
            noted.add(self.row, token if isinstance(token, list) else [token])
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None: ...

    for row, ids in enumerate(prompts):
        pipe.generate(openvino.Tensor(np.array([ids], np.int64)), config, Told(row))
    return noted.answer()


if __name__ == "__main__":
    serve(load, run)
