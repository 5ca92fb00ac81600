"""Language models behind one protocol: a scripted stub, record and replay, an HTTP client.

    completion = await model.complete("Once upon", max_tokens=8, client="alice", priority=step)
    answer = await model.complete_messages([{"role": "user", "content": "Hello"}])
    async for piece in model.stream_messages([{"role": "user", "content": "Hello"}]): ...
    likelihoods = await model.likelihoods([{"role": "user", "content": "2 + 2?"}], ["4", "5"])

`serving` offers the same methods for its engine in this process and for its discrete-event server.
"""

from mixattn.evals.llm.openai import OpenAI
from mixattn.evals.llm.protocol import (
    CallFailed,
    CallOptions,
    Completion,
    Divergence,
    LanguageModel,
    Likelihood,
    Messages,
    Piece,
    Prompt,
    Usage,
    as_text,
)
from mixattn.evals.llm.retry import RetryPolicy, call_with_retries
from mixattn.evals.llm.scripted import Record, Replay, Scripted, digest

__all__ = [
    "CallFailed",
    "CallOptions",
    "Completion",
    "Divergence",
    "LanguageModel",
    "Likelihood",
    "Messages",
    "OpenAI",
    "Piece",
    "Prompt",
    "Record",
    "Replay",
    "RetryPolicy",
    "Scripted",
    "Usage",
    "as_text",
    "call_with_retries",
    "digest",
]
