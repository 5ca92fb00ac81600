"""A client of OpenAI-compatible servers. Needs the extra `llm`."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Unpack

from mixattn.evals.llm import log_probabilities
from mixattn.evals.llm.protocol import (
    CallFailed,
    CallOptions,
    Completion,
    LanguageModel,
    Likelihood,
    Messages,
    Piece,
    Prompt,
    Usage,
    as_text,
)


class OpenAI(LanguageModel):
    """A client for any server that speaks OpenAI's completions or chat protocol.

        async with OpenAI("http://localhost:8000/v1", "tiny") as model:
            completion = await model.complete("Once upon")
            answer = await model.complete_messages([{"role": "user", "content": "Hello"}])

    Args:
      base_url: up to and including the version, e.g. "http://localhost:8000/v1".
      chat: `complete` sends a text prompt as one user message to `/chat/completions`. Token ids need
        `chat=False`. `complete_messages` always uses `/chat/completions`.
      timeout_s: limit for one HTTP exchange.
      connections: maximum number of simultaneous requests; further calls wait in the client.
      transport: for tests; see httpx2.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        chat: bool = False,
        timeout_s: float = 120.0,
        connections: int = 256,
        transport: Any = None,
    ):
        import httpx2

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every call buries a run's progress
        self._model, self._chat = model, chat
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers=headers,
            timeout=timeout_s,
            limits=httpx2.Limits(max_connections=connections),
            transport=transport,
        )

    async def __aenter__(self) -> "OpenAI":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        client: str = "",
        stop: Sequence[str] = (),
    ) -> Completion:
        options: CallOptions = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "priority": priority,
            "client": client,
            "stop": stop,
        }
        if self._chat:
            if not isinstance(prompt, str):
                raise ValueError("chat=True sends text, but the prompt is a list of token ids")
            return await self.complete_messages([{"role": "user", "content": prompt}], **options)
        text_or_ids = prompt if isinstance(prompt, str) else list(prompt)
        return _parse(await self._post("completions", self._body(options, prompt=text_or_ids)))

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        body = self._body(options, messages=[dict(message) for message in messages])
        return _parse(await self._post("chat/completions", body))

    async def stream_messages(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> AsyncIterator[Piece]:
        import httpx2

        body = self._body(options, messages=[dict(message) for message in messages])
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        finish_reason, usage = "", Usage()
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    event = _event(line)
                    usage = _usage(event) if event.get("usage") else usage
                    for choice in event.get("choices") or []:
                        finish_reason = choice.get("finish_reason") or finish_reason
                        if text := (choice.get("delta") or {}).get("content"):
                            yield Piece(text)
        except httpx2.HTTPError as why:
            raise CallFailed(f"{type(why).__name__}: {why}", transient=True) from why
        if not finish_reason:
            raise CallFailed("the server's stream ended before the answer did", transient=True)
        yield Piece("", finish_reason, usage)

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        """From `/completions` with `echo`, which returns the log-probabilities of the prompt's own tokens.

        That endpoint takes text, so the conversation is sent as `as_text(messages)`.
        """
        prompt = as_text(messages) + " "
        options: CallOptions = {"max_tokens": 1, "priority": priority, "client": client}

        async def one(continuation: str) -> Likelihood:
            body = self._body(options, prompt=prompt + continuation) | {"echo": True, "logprobs": 1}
            return log_probabilities.of_echo(await self._post("completions", body), prompt, continuation)

        return list(await asyncio.gather(*map(one, continuations)))

    def _body(self, options: CallOptions, **what: Any) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            **what,
            "max_tokens": options.get("max_tokens", 256),
            "temperature": options.get("temperature", 0.0),
        }
        body |= {"priority": priority} if (priority := options.get("priority", 0)) else {}
        body |= {"seed": seed} if (seed := options.get("seed")) is not None else {}
        body |= {"stop": list(stop)} if (stop := options.get("stop", ())) else {}
        return body | ({"user": client} if (client := options.get("client", "")) else {})

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        try:
            response = await self._http.post(path, json=body)
        except httpx2.HTTPError as why:
            raise CallFailed(f"{type(why).__name__}: {why}", transient=True) from why
        if response.status_code != 200:
            raise _refusal(response)
        try:
            return response.json()
        except ValueError as why:
            raise CallFailed(
                f"the server's response is not JSON: {response.text[:200]!r}", transient=True
            ) from why


def _refusal(response: Any) -> CallFailed:
    status = response.status_code
    transient = status in (408, 409, 425, 429) or status >= 500
    asked = response.headers.get("Retry-After", "")
    retry_after_s = float(asked) if asked.replace(".", "", 1).isdecimal() else None
    return CallFailed(
        f"HTTP {status}: {response.text[:500]}", transient=transient, retry_after_s=retry_after_s
    )


def _event(line: str) -> dict[str, Any]:
    """The object of one `data:` line of a stream; empty for every other line."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return {}
    try:
        event = json.loads(data)
    except ValueError as why:
        raise CallFailed(f"the server's stream holds {data[:200]!r}, not JSON", transient=True) from why
    if not isinstance(event, dict) or "error" in event:
        raise CallFailed(f"the server ended its stream: {data[:200]}", transient=True)
    return event


def _usage(response: dict[str, Any]) -> Usage:
    used = response.get("usage") or {}
    cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(used.get("prompt_tokens", 0), used.get("completion_tokens", 0), cached)


def _parse(response: dict[str, Any]) -> Completion:
    try:
        choice = response["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        return Completion(text, _usage(response), choice.get("finish_reason") or "stop")
    except (KeyError, IndexError, TypeError, AttributeError) as why:
        raise CallFailed(
            f"the server's response holds no completion: {response!r:.200}", transient=False
        ) from why
