"""Language models behind one async method: the protocol, a scripted stub, record and replay, an HTTP client.

    completion = await model.complete("Once upon", max_tokens=8, client="alice", priority=step)

`serving` offers the same method for its engine in this process and for its discrete-event server.
"""

from mixattn.evals.llm.openai import OpenAI
from mixattn.evals.llm.protocol import CallFailed, Completion, Divergence, LanguageModel, Prompt, Usage
from mixattn.evals.llm.scripted import Record, Replay, Scripted, digest

__all__ = [
    "CallFailed",
    "Completion",
    "Divergence",
    "LanguageModel",
    "OpenAI",
    "Prompt",
    "Record",
    "Replay",
    "Scripted",
    "Usage",
    "digest",
]
