"""Language models without a network: a scripted stub, a recorder, and the replay of a recording."""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixattn.evals.llm.protocol import Completion, Divergence, LanguageModel, Prompt, Usage


class Scripted:
    """A deterministic stub: `reply(prompt)`, or `reply(prompt, seed)` with `wants_seed`, is the text.

    `usage` counts words as tokens. `stop` and `max_tokens` truncate the reply as they would a model's.
    """

    def __init__(self, reply: Callable[..., str], *, wants_seed: bool = False):
        self._reply, self._wants_seed = reply, wants_seed

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


def digest(prompt: Prompt) -> str:
    """A short fingerprint of a prompt; equal for equal text or equal token ids."""
    text = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _call_fields(
    prompt: Prompt, max_tokens: int, temperature: float, seed: int | None, client: str, stop: Sequence[str]
) -> dict[str, Any]:
    """The arguments of a call as a recording stores them."""
    return {
        "client": client,
        "seed": seed,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop": list(stop),
    }


class Record:
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
        call = _call_fields(prompt, max_tokens, temperature, seed, client, stop)
        completion = await self._inner.complete(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            priority=priority,
            client=client,
            stop=stop,
        )
        with self._path.open("a") as out:
            out.write(json.dumps({**call, **asdict(completion)}) + "\n")
        return completion


class Replay:
    """Answers calls from a recording, matched by (client, seed) and arguments; each line answers one call."""

    def __init__(self, path: str | os.PathLike[str]):
        self._unused: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for line in Path(path).read_text().splitlines():
            recorded = json.loads(line)
            self._unused.setdefault((recorded["client"], recorded["seed"]), []).append(recorded)

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
        call = _call_fields(prompt, max_tokens, temperature, seed, client, stop)
        unused = self._unused.get((client, seed), [])
        for i, recorded in enumerate(unused):
            if all(recorded[name] == value for name, value in call.items()):
                del unused[i]
                return Completion(recorded["text"], Usage(**recorded["usage"]), recorded["finish_reason"])
        raise Divergence(_difference(call, unused))


def _difference(call: dict[str, Any], unused: list[dict[str, Any]]) -> str:
    caller = f"client {call['client']!r} with seed {call['seed']}"
    if not unused:
        return f"{caller} makes more calls than the recording holds: {call['prompt']!r}"
    recorded = {name: unused[0][name] for name in call}
    old, new = (json.dumps(x, indent=1).replace("\\n", "\n").splitlines() for x in (recorded, call))
    changed = "\n".join(line for line in difflib.ndiff(old, new) if line[0] in "+-")
    return f"{caller} makes a call that the recording does not hold:\n{changed}"
