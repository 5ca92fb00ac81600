"""A client of OpenAI-compatible servers. Needs the extra `llm`."""

from collections.abc import Sequence
from typing import Any

from mixattn.evals.llm.protocol import CallFailed, Completion, Prompt, Usage


class OpenAI:
    """A client for any server that speaks OpenAI's completions or chat protocol.

        async with OpenAI("http://localhost:8000/v1", "tiny") as model:
            completion = await model.complete("Once upon")

    Args:
      base_url: up to and including the version, e.g. "http://localhost:8000/v1".
      chat: send a text prompt as one user message to `/chat/completions`. Token ids need `chat=False`.
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
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "priority": priority,
        }
        body |= {"seed": seed} if seed is not None else {}
        body |= {"stop": list(stop)} if stop else {}
        body |= {"user": client} if client else {}
        if self._chat:
            if not isinstance(prompt, str):
                raise ValueError("chat=True sends text, but the prompt is a list of token ids")
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        return _parse(await self._post("chat/completions" if self._chat else "completions", body))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        try:
            response = await self._http.post(path, json=body)
        except httpx2.HTTPError as why:
            raise CallFailed(f"{type(why).__name__}: {why}", transient=True) from why
        if response.status_code != 200:
            transient = response.status_code in (408, 409, 425, 429) or response.status_code >= 500
            raise CallFailed(f"HTTP {response.status_code}: {response.text[:500]}", transient=transient)
        try:
            return response.json()
        except ValueError as why:
            raise CallFailed(
                f"the server's response is not JSON: {response.text[:200]!r}", transient=True
            ) from why


def _parse(response: dict[str, Any]) -> Completion:
    try:
        choice, used = response["choices"][0], response.get("usage") or {}
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        usage = Usage(used.get("prompt_tokens", 0), used.get("completion_tokens", 0), cached)
        return Completion(text, usage, choice.get("finish_reason") or "stop")
    except (KeyError, IndexError, TypeError, AttributeError) as why:
        raise CallFailed(
            f"the server's response holds no completion: {response!r:.200}", transient=False
        ) from why
