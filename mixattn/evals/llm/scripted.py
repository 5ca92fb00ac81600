"""Language models without a network: a scripted stub, a recorder, and the replay of a recording."""

import difflib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

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

DEFAULTS: CallOptions = {"max_tokens": 256, "temperature": 0.0, "seed": None, "client": "", "stop": ()}


class Scripted(LanguageModel):
    """A deterministic stub: `reply(prompt)`, or `reply(prompt, seed)` with `wants_seed`, is the text.

    `usage` counts words as tokens. `stop` and `max_tokens` truncate the reply as they would a model's.
    A conversation reaches `reply` as `as_text(messages)`, and is streamed word by word.

    Args:
      likelihood: `likelihood(text, continuation)`, the log-probability of a continuation. Without it the stub
        tells none.
    """

    def __init__(
        self,
        reply: Callable[..., str],
        *,
        wants_seed: bool = False,
        likelihood: Callable[[str, str], float] | None = None,
    ):
        self._reply, self._wants_seed, self._likelihood = reply, wants_seed, likelihood

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
        text = self._reply(prompt, seed) if self._wants_seed else self._reply(prompt)
        for stop_text in stop:
            text = text.split(stop_text, 1)[0]
        words = text.split(" ")
        finish_reason = "length" if len(words) > max_tokens else "stop"
        text = text if finish_reason == "stop" else " ".join(words[:max_tokens])
        prompt_tok = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        return Completion(text, Usage(prompt_tok, min(len(words), max_tokens)), finish_reason)

    async def stream_messages(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> AsyncIterator[Piece]:
        whole = await self.complete_messages(messages, **options)
        first, *rest = whole.text.split(" ")
        for word in (first, *(f" {word}" for word in rest)):
            yield Piece(word)
        yield Piece("", whole.finish_reason, whole.usage)

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        if self._likelihood is None:
            raise CallFailed("this script does not tell log-probabilities", transient=False)
        text = as_text(messages)
        return [Likelihood(self._likelihood(text, each), max(1, len(each.split()))) for each in continuations]


def digest(prompt: Prompt) -> str:
    """A short fingerprint of a prompt; equal for equal text or equal token ids."""
    text = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _call_fields(prompt: Prompt | Messages, options: CallOptions) -> dict[str, Any]:
    """The arguments of a call as a recording stores them."""
    given = DEFAULTS | options
    return {
        "client": given["client"],
        "seed": given["seed"],
        "prompt": prompt if isinstance(prompt, str) else [_plain(item) for item in prompt],
        "max_tokens": given["max_tokens"],
        "temperature": given["temperature"],
        "stop": list(given["stop"]),
    }


def _plain(item: Any) -> Any:
    """A message as a dict; a token id as it is."""
    return item if isinstance(item, int) else dict(item)


class Record(LanguageModel):
    """Forwards calls to `inner` and appends each one that succeeds to `path`, one JSON line per call."""

    def __init__(self, inner: LanguageModel, path: str | os.PathLike[str]):
        self._inner, self._path = inner, Path(path)

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
        completion = await self._inner.complete(prompt, **options)
        self._write({**_call_fields(prompt, options), **asdict(completion)})
        return completion

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        completion = await self._inner.complete_messages(messages, **options)
        self._write({**_call_fields(messages, options), **asdict(completion)})
        return completion

    async def stream_messages(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> AsyncIterator[Piece]:
        """Records the call once its last piece has come."""
        text, last = "", Piece("")
        async for piece in self._inner.stream_messages(messages, **options):
            text, last = text + piece.text, piece
            yield piece
        completion = Completion(text, last.usage, last.finish_reason or "stop")
        self._write({**_call_fields(messages, options), **asdict(completion)})

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        found = await self._inner.likelihoods(messages, continuations, priority=priority, client=client)
        call = _likelihood_fields(messages, continuations, client)
        self._write({**call, "likelihoods": [asdict(each) for each in found]})
        return found

    def _write(self, call: dict[str, Any]) -> None:
        with self._path.open("a") as out:
            out.write(json.dumps(call) + "\n")


def _likelihood_fields(messages: Messages, continuations: Sequence[str], client: str) -> dict[str, Any]:
    return {"prompt": [dict(m) for m in messages], "continuations": list(continuations), "client": client}


class Replay(LanguageModel):
    """Answers calls from a recording, matched by (client, seed) and arguments; each line answers one call."""

    def __init__(self, path: str | os.PathLike[str]):
        self._unused: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for line in Path(path).read_text().splitlines():
            recorded = json.loads(line)
            key = (recorded["client"], recorded.get("seed"))
            self._unused.setdefault(key, []).append(recorded)

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
        """The recorded completion.

        Raises:
          Divergence: the recording has no unused call with these arguments.
        """
        options: CallOptions = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "client": client,
            "stop": stop,
        }
        return _completion(self._take(_call_fields(prompt, options)))

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        """The recorded answer, whether it was streamed or not; raises as `complete` does."""
        return _completion(self._take(_call_fields(messages, options)))

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        """The recorded log-probabilities; raises as `complete` does."""
        recorded = self._take(_likelihood_fields(messages, continuations, client))
        return [Likelihood(**each) for each in recorded["likelihoods"]]

    def _take(self, call: dict[str, Any]) -> dict[str, Any]:
        unused = self._unused.get((call["client"], call.get("seed")), [])
        for i, recorded in enumerate(unused):
            if all(recorded.get(name, ...) == value for name, value in call.items()):
                return unused.pop(i)
        raise Divergence(_difference(call, unused))


def _completion(recorded: dict[str, Any]) -> Completion:
    return Completion(recorded["text"], Usage(**recorded["usage"]), recorded["finish_reason"])


def _difference(call: dict[str, Any], unused: list[dict[str, Any]]) -> str:
    caller = f"client {call['client']!r} with seed {call.get('seed')}"
    if not unused:
        return f"{caller} makes more calls than the recording holds: {call['prompt']!r}"
    recorded = {name: unused[0].get(name) for name in call}
    old, new = (json.dumps(x, indent=1).replace("\\n", "\n").splitlines() for x in (recorded, call))
    changed = "\n".join(line for line in difflib.ndiff(old, new) if line[0] in "+-")
    return f"{caller} makes a call that the recording does not hold:\n{changed}"
