"""What the command line says of the model, and the engine's sizes that follow. Imports no jax: mistakes are
told at once.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixattn.spec import ModelConfig
from serving import fair, model_engine
from serving.config import EngineConfig, Limits
from serving.http.wire import MAX_TOP
from serving.kvcache.sizing import split

MAX_SLOTS = 16
CHUNK_TOK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the command line says of the model.

    Attributes:
      kv_bytes: budget of K/V bytes.
      kv_dtype: type that they are stored in; "" = the model's.
      max_model_tok: longest request; 0 = the model's context, or what the budget holds.
      slots: outputs that run at once; 0 = from the budget, at most MAX_SLOTS.
      chat_template: a file to use instead of the checkpoint's template.
    """

    checkpoint: Path
    name: str
    kv_bytes: int
    kv_dtype: str = ""
    max_model_tok: int = 0
    slots: int = 0
    policy: str = "vtc"
    policy_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str | None = None
    quantize: str = ""
    chat_template: Path | None = None


def served_name(checkpoint: Path) -> str:
    """A checkpoint's name: its folder's, or that of the run around a folder called "model"."""
    path = checkpoint.resolve()
    return path.parent.name if path.name == "model" else path.stem if path.is_file() else path.name


def engine_config(model: ModelConfig, options: StartOptions, eos_ids: Sequence[int]) -> EngineConfig:
    """An engine that serves any request the protocol can ask for.

    Raises:
      ValueError: the budget holds no request, or an unknown policy.
    """
    if options.policy not in fair.POLICIES:
        raise ValueError(f"unknown policy {options.policy!r}; known: {', '.join(fair.POLICIES)}")
    longest = options.max_model_tok or model.max_positions
    if longest > model.max_positions and model.positions == "learned":
        raise ValueError(f"--max_model_len={longest}, but the model has {model.max_positions} positions")
    limits = Limits(chunk_tok=min(CHUNK_TOK, longest), step_tok=min(CHUNK_TOK, longest))
    pools = split(
        model,
        options.kv_bytes,
        request_tok=longest,
        page_size=model_engine.PAGE_TOK,
        limits=limits,
        kv_dtype=options.kv_dtype,
    )
    slots = min(options.slots or MAX_SLOTS, pools.requests)
    bounded = slots == pools.requests
    return EngineConfig(
        max_slots=slots,
        page_size=model_engine.PAGE_TOK,
        num_pages=pools.num_pages if bounded else 0,
        window_pages=pools.window_pages if bounded else 0,
        max_request_tok=longest,
        kv_dtype=options.kv_dtype,
        policy=options.policy,
        policy_options=options.policy_options,
        limits=limits,
        eos_ids=tuple(eos_ids),
        prefill_rows=(1,),
        chunk_sizes=(min(32, limits.chunk_tok),),
        layers_per_program=-1,  # a deep stack starts several times faster
        penalties=True,
        logprobs=MAX_TOP,
        prompt_logprobs=True,
        grammar=importlib.util.find_spec("llguidance") is not None,
    )
