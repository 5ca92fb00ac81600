"""What a wiring costs in the serving engine: tokens per second, and how many requests fit one KV budget.

The one experiment that imports `serving`. Speed does not depend on what the weights are.
"""

import time
from typing import Any

import numpy as np

from mixattn import ModelConfig, Transformer
from serving.config import EngineConfig, Limits
from serving.kvcache import sizing
from serving.request import Request, Sampling

PAGE_TOK = 16
LIMITS = Limits(chunk_tok=64, step_tok=256)


def concurrent(config: ModelConfig, budget_bytes: int, request_tok: int) -> int | str:
    """Requests of this length that the engine admits at once in a KV budget, by the sizes of its page pools.

    Where the engine refuses the wiring, why.
    """
    if refused := _refusal(config):
        return refused
    try:
        split = sizing.split(config, budget_bytes, request_tok=request_tok, page_size=PAGE_TOK, limits=LIMITS)
    except ValueError:
        return 0
    return split.requests


def speed(model: Transformer, rows_RT: np.ndarray, output_tok: int) -> dict[str, Any]:
    """Serves the rows as prompts, all at once and greedy, the second time with every program compiled.

    Returns:
      `engine_tok_s`, output tokens per second from the first submission to the last token; or why the engine
      refuses the wiring.
    """
    from serving.engine.engine import Engine

    if refused := _refusal(model.config):
        return {"engine_tok_s": refused}
    requests = [_request(row_T, output_tok) for row_T in rows_RT]
    config = EngineConfig(
        max_slots=len(rows_RT),
        page_size=PAGE_TOK,
        max_request_tok=rows_RT.shape[1] + output_tok,
        limits=LIMITS,
        prefill_rows=(4,),
        reuse=False,
    )
    engine = Engine(model, config)
    engine.run(requests)
    start = time.perf_counter()
    engine.run([_request(row_T, output_tok) for row_T in rows_RT])
    seconds = time.perf_counter() - start
    return {"engine_tok_s": round(len(rows_RT) * output_tok / seconds, 1)}


def _refusal(config: ModelConfig) -> str:
    return "refused: the engine's pages keep no sinks" if config.sinks else ""


def _request(prompt_T: np.ndarray, output_tok: int) -> Request:
    sampling = Sampling(max_tokens=output_tok, ignore_eos=True)
    return Request(client="a", prompt_ids=[int(token) for token in prompt_T], sampling=sampling)
