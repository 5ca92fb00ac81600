"""Which model answers: a scripted one by name, or any OpenAI-compatible server."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mixattn.evals.clover import scripted
from mixattn.evals.clover.triple import Triple
from mixattn.evals.llm import LanguageModel, OpenAI


def check_names(model: str, url: str) -> None:
    """Raises ValueError if no such model can be had."""
    if model and not url and model not in scripted.NAMES:
        raise ValueError(
            f"--model={model} is none of the scripted {', '.join(scripted.NAMES)}, and --url names no server"
        )
    if url and not model:
        raise ValueError(f"--url={url} needs --model, the model's name on that server")


@contextlib.asynccontextmanager
async def opened(
    model: str, url: str, api_key: str | None, p: float, triples: Sequence[Triple]
) -> AsyncIterator[LanguageModel | None]:
    """The model that `--model` and `--url` name; None for an empty name."""
    if url:
        server: Any = OpenAI(url, model, api_key=api_key, chat=True)
        async with server:
            yield server
    elif model == "ground_truth":
        yield scripted.ground_truth(triples)
    elif model == "noisy":
        yield scripted.noisy(p)
    elif model:
        yield {"oracle": scripted.oracle, "charitable": scripted.charitable}[model]()
    else:
        yield None
