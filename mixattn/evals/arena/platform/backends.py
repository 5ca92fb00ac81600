"""Answers as streams of text. Whatever goes wrong at a provider is one error without its words."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.engine_process import EngineFailed, EngineProcess

type Messages = list[dict[str, str]]
MAX_TOKENS, TEMPERATURE = 1024, 0.7  # the same for every model of every battle


class AnswerEnded(RuntimeError):
    """An answer that broke off. The cause is for the server's log, never for the page."""


class Backends:
    """Where answers come from; keeps the processes of checkpoints."""

    def __init__(self, models: Iterable[ArenaModel]) -> None:
        self._engines = {m.name: EngineProcess(m.engine) for m in models if m.engine}

    async def start(self) -> None:
        """Starts to load the checkpoints."""
        for engine in self._engines.values():
            await engine.start()

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()

    async def stream(self, model: ArenaModel, messages: Messages) -> AsyncGenerator[str]:
        """The pieces of the model's answer.

        Raises:
          AnswerEnded: the answer broke off, or did not start.
        """
        if model.name not in self._engines:
            async for piece in stream(model, messages):
                yield piece
            return
        answer = self._engines[model.name].stream(messages, max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
        try:
            async with contextlib.aclosing(answer) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineFailed as why:
            raise AnswerEnded(str(why)) from why


async def stream(model: ArenaModel, messages: Messages) -> AsyncGenerator[str]:
    """The pieces of a server's or a script's answer.

    Raises:
      AnswerEnded: the answer broke off, or did not start.
    """
    pieces = _scripted(model) if model.scripted else _chat(model, messages)
    async for piece in pieces:
        yield piece


async def _scripted(model: ArenaModel) -> AsyncGenerator[str]:
    for number, word in enumerate(model.scripted.split(" ")):
        if model.fails and number >= model.fails:
            raise AnswerEnded("the script says so")
        if model.delay_s:
            await asyncio.sleep(model.delay_s)
        yield word if number == 0 else f" {word}"


async def _chat(model: ArenaModel, messages: Messages) -> AsyncGenerator[str]:
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
