"""A language model is one async function to everyone who merely talks to it.

    completion = await model.complete("Once upon", max_tokens=8, client="alice", priority=step)

Bodies here: `Scripted` (a Python function), `Record` and `Replay` (a file), `OpenAI` (any compatible server).
The engine in this process and the discrete-event server of `serving` offer the same method. Retrying is the
caller's business: a body raises `CallFailed`, which says whether another try could help.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

type Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached_tok` of the prompt came from a prefix cache."""

    prompt_tok: int = 0
    output_tok: int = 0
    cached_tok: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    usage: Usage = Usage()
    finish_reason: str = "stop"


class LanguageModel(Protocol):
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
        """Continues `prompt` (text, or token ids) by at most `max_tokens` tokens.

        Args:
          priority: smaller goes first, among calls of one owner.
          client: whose share of the server this uses.

        Raises:
          CallFailed: no completion came back.
        """


class CallFailed(RuntimeError):
    """A call that gave no completion. `transient` says whether trying again could help."""

    def __init__(self, why: str, *, transient: bool):
        super().__init__(why)
        self.transient = transient


class Divergence(RuntimeError):
    """A replayed caller asked something the recording does not hold."""


class Scripted:
    """A deterministic stub: `reply(prompt)` or `reply(prompt, seed)` is the text.

    Words stand for tokens in `usage`. `stop` and `max_tokens` cut the reply as a model's would be.
    """

    def __init__(self, reply: Callable[..., str], *, wants_seed: bool = False):
        self._reply, self._wants_seed = reply, wants_seed

    async def complete(
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        text = self._reply(prompt, seed) if self._wants_seed else self._reply(prompt)
        for end in stop:
            text = text.split(end, 1)[0]
        words = text.split(" ")
        why = "length" if len(words) > max_tokens else "stop"
        text = text if why == "stop" else " ".join(words[:max_tokens])
        prompt_tok = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        return Completion(text, Usage(prompt_tok, min(len(words), max_tokens)), why)


def digest(prompt: Prompt) -> str:
    """A short fingerprint of a prompt, equal for equal text or token ids."""
    text = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _asked(prompt, max_tokens, temperature, seed, client, stop) -> dict[str, Any]:
    return {
        "client": client,
        "seed": seed,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop": list(stop),
    }


class Record:
    """Passes calls to `inner` and appends each one that succeeded to `path`, a line of JSON a call."""

    def __init__(self, inner: LanguageModel, path: str | os.PathLike[str]):
        self._inner, self._path = inner, Path(path)

    async def complete(
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        asked = _asked(prompt, max_tokens, temperature, seed, client, stop)
        done = await self._inner.complete(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            priority=priority,
            client=client,
            stop=stop,
        )
        with self._path.open("a") as out:
            out.write(json.dumps({**asked, **asdict(done)}) + "\n")
        return done


class Replay:
    """Answers from a recording, by (client, seed) and prompt, each line once. Asks nobody."""

    def __init__(self, path: str | os.PathLike[str]):
        self._left: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for line in Path(path).read_text().splitlines():
            call = json.loads(line)
            self._left.setdefault((call["client"], call["seed"]), []).append(call)

    async def complete(
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        asked = _asked(prompt, max_tokens, temperature, seed, client, stop)
        calls = self._left.get((client, seed), [])
        for i, call in enumerate(calls):
            if all(call[name] == value for name, value in asked.items()):
                del calls[i]
                return Completion(call["text"], Usage(**call["usage"]), call["finish_reason"])
        raise Divergence(_difference(asked, calls))


def _difference(asked: dict[str, Any], calls: list[dict[str, Any]]) -> str:
    who = f"client {asked['client']!r} with seed {asked['seed']}"
    if not calls:
        return f"{who} asks more often than the recording holds: {asked['prompt']!r}"
    was, now = ({k: c[k] for k in asked} for c in (calls[0], asked))
    old, new = (json.dumps(x, indent=1).replace("\\n", "\n").splitlines() for x in (was, now))
    lines = difflib.ndiff(old, new)
    return f"{who} asks what the recording does not hold:\n" + "\n".join(x for x in lines if x[0] in "+-")


class OpenAI:
    """A client for any server that speaks OpenAI's completions or chat protocol.

    Args:
      base_url: up to and including the version, e.g. "http://localhost:8000/v1".
      chat: send a text prompt as one user message to `/chat/completions`. Token ids need `chat=False`.
      timeout_s: of one HTTP exchange.
      connections: simultaneous requests; more wait here.
      transport: for tests; see httpx2.

    Use `async with OpenAI(...) as model`. Needs the extra `llm`.
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
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
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
        return _read(await self._post("chat/completions" if self._chat else "completions", body))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        try:
            answer = await self._http.post(path, json=body)
        except httpx2.HTTPError as why:
            raise CallFailed(f"{type(why).__name__}: {why}", transient=True) from why
        if answer.status_code != 200:
            again = answer.status_code in (408, 409, 425, 429) or answer.status_code >= 500
            raise CallFailed(f"HTTP {answer.status_code}: {answer.text[:500]}", transient=again)
        try:
            return answer.json()
        except ValueError as why:
            raise CallFailed(
                f"the server's answer is not JSON: {answer.text[:200]!r}", transient=True
            ) from why


def _read(answer: dict[str, Any]) -> Completion:
    try:
        choice, used = answer["choices"][0], answer.get("usage") or {}
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        usage = Usage(used.get("prompt_tokens", 0), used.get("completion_tokens", 0), cached)
        return Completion(text, usage, choice.get("finish_reason") or "stop")
    except (KeyError, IndexError, TypeError, AttributeError) as why:
        raise CallFailed(f"no completion in the server's answer: {answer!r:.200}", transient=False) from why
