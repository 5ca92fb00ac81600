"""Settings of an engine that follow from a model and the memory there is, for commands without a config file.

Imports no jax: mistakes are refused before a model is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixattn.spec import ModelConfig
from serving import fair
from serving.config import STOP_IDS, EngineConfig, Limits
from serving.kvcache.sizing import split
from serving.request import Request

PAGE_TOK = 16
MAX_SLOTS = 16  # more rows share a step's products, but each waits longer for its next token
FREE_SHARE = 0.5  # of the memory that is free: the rest is for activations and for others
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> int:
    """Bytes that a size such as "1GiB", "500 MB" or "1048576" names.

    Raises:
      ValueError: not a size, or none at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for example 1GiB, 500MiB or a number of bytes")
    count = int(float(found[1]) * _UNITS[found[2].upper()])
    if count < 1:
        raise ValueError(f"{text!r} is {count} bytes; it must be at least 1")
    return count


def free_bytes() -> int:
    """Memory that this process can still take: the system's, or its control group's if that is less.

    Raises:
      ValueError: the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration) as why:
        raise ValueError("the free memory is not known on this system; give --kv_memory, e.g. 1GiB") from why
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no group, or no limit ("max")
        return free
    return min(free, max(0, limit - used))


def engine_config(
    model: ModelConfig,
    requests: Sequence[Request],
    *,
    kv_bytes: int,
    max_model_tok: int = 0,
    kv_dtype: str = "",
    policy: str = "fcfs",
    eos_ids: Sequence[int] = (),
) -> EngineConfig:
    """An engine for these requests: as many at once as the K/V budget holds, at most `MAX_SLOTS`.

    Args:
      kv_bytes: budget of K/V bytes; what the requests cannot use is not taken.
      max_model_tok: longest request, prompt and outputs together; 0 = the model's context.

    Raises:
      ValueError: an unknown policy, a request that is too long, or a budget that holds none.
    """
    if policy not in fair.POLICIES:
        raise ValueError(f"unknown policy {policy!r}; known: {', '.join(fair.POLICIES)}")
    limit = longest_tok(model, max_model_tok)
    needs = {r.id: len(r.prompt_ids) + r.sampling.max_tokens for r in requests}
    for id, need in needs.items():
        if need > limit:
            raise ValueError(too_long(id, need, limit))
    # A power of two, so that files of similar requests share compiled programs.
    request_tok = min(limit, max(64, 1 << (max(needs.values(), default=1) - 1).bit_length()))
    limits = Limits(chunk_tok=min(256, request_tok), step_tok=256)
    pools = split(
        model, kv_bytes, request_tok=request_tok, page_size=PAGE_TOK, limits=limits, kv_dtype=kv_dtype
    )
    slots = min(MAX_SLOTS, pools.requests, 1 << (sum(r.sampling.n for r in requests) - 1).bit_length())
    bounded = slots == pools.requests  # else the pools are as large as the slots need
    return EngineConfig(
        max_slots=slots,
        page_size=PAGE_TOK,
        num_pages=pools.num_pages if bounded else 0,
        window_pages=pools.window_pages if bounded else 0,
        max_request_tok=request_tok,
        kv_dtype=kv_dtype,
        policy=policy,
        limits=limits,
        eos_ids=tuple(eos_ids),
        prefill_rows=(1,),
        chunk_sizes=(min(64, limits.chunk_tok),),
        penalties=any(r.sampling.has_penalties for r in requests),
        logprobs=max((r.sampling.top for r in requests), default=-1),
        prompt_logprobs=any(r.sampling.prompt_logprobs is not None for r in requests),
    )


def longest_tok(model: ModelConfig, max_model_tok: int = 0) -> int:
    """Tokens of the longest request: what was asked for, or else the model's context.

    Raises:
      ValueError: more than a model with learned positions has.
    """
    limit = max_model_tok or model.max_positions
    if limit > model.max_positions and model.positions == "learned":
        raise ValueError(f"--max_model_len={limit}, but the model has {model.max_positions} positions")
    return limit


def too_long(id: str, need: int, limit: int) -> str:
    return f"request {id!r} needs {need} tokens; the longest allowed is {limit} (--max_model_len)"


def eos_ids(path: str | Path) -> tuple[int, ...]:
    """The tokens that end an answer of the model at `path`.

    Raises:
      ValueError: the checkpoint names more than the engine compares with, or ids that do not exist.
    """
    from mixattn import hf  # imports jax

    ids = tuple(hf.stop_ids(path))
    if len(ids) > STOP_IDS:
        raise ValueError(
            f"{path} names {len(ids)} tokens that end a text (eos_token_id); the engine compares {STOP_IDS}"
        )
    return ids


def sampling_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Sampling` that a generation_config.json sets; none if it asks for greedy decoding."""
    if not generation.get("do_sample"):
        return {}
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: generation[name] for name in names if generation.get(name) is not None}
    if given.get("top_k") == 0:  # off, in Hugging Face's words
        given["top_k"] = -1
    return {"temperature": 1.0} | given
