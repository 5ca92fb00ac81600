"""Answers as streams of text. Whatever goes wrong at a provider is one error without its words."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from mixattn.evals.arena.platform.catalog import ArenaModel

type Messages = list[dict[str, str]]
MAX_TOKENS, TEMPERATURE = 1024, 0.7  # the same for every model of every battle


class AnswerEnded(RuntimeError):
    """An answer that broke off. The cause is for the server's log, never for the page."""


async def stream(model: ArenaModel, messages: Messages) -> AsyncIterator[str]:
    """The pieces of the model's answer.

    Raises:
      AnswerEnded: the answer broke off, or did not start.
    """
    pieces = _scripted(model) if model.scripted else _chat(model, messages)
    async for piece in pieces:
        yield piece


async def _scripted(model: ArenaModel) -> AsyncIterator[str]:
    for number, word in enumerate(model.scripted.split(" ")):
        if model.fails and number >= model.fails:
            raise AnswerEnded("the script says so")
        if model.delay_s:
            await asyncio.sleep(model.delay_s)
        yield word if number == 0 else f" {word}"


async def _chat(model: ArenaModel, messages: Messages) -> AsyncIterator[str]:
    """Server-sent events of `/chat/completions`."""
    import httpx2

    body: dict[str, Any] = {"model": model.model, "messages": messages, "stream": True}
    body |= {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE}
    headers = {"Authorization": f"Bearer {model.key}"} if model.key else {}
    url = model.base_url.rstrip("/") + "/chat/completions"
    try:
        async with (
            httpx2.AsyncClient(timeout=60.0, headers=headers) as http,
            http.stream("POST", url, json=body) as response,
        ):
            if response.status_code != 200:
                raise AnswerEnded(f"HTTP {response.status_code}")
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    return
                piece = json.loads(data)["choices"][0].get("delta", {}).get("content")
                if piece:
                    yield piece
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as why:
        raise AnswerEnded(f"{type(why).__name__}: {why}") from why
