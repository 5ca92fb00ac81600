"""The language-model protocol: one async method, its result, and its errors.

Retrying is left to the caller: a backend raises `CallFailed`, which says whether a retry could succeed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

type Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call. `cached_tok` counts the prompt tokens served from a prefix cache."""

    prompt_tok: int = 0
    output_tok: int = 0
    cached_tok: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The generated text, its token counts, and why generation ended ("stop" or "length")."""

    text: str
    usage: Usage = Usage()
    finish_reason: str = "stop"


class LanguageModel(Protocol):
    """Anything that completes prompts."""

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
          priority: among the calls of one caller, smaller values are scheduled first.
          client: the client whose share of the server this call uses.

        Raises:
          CallFailed: no completion was produced.
        """


class CallFailed(RuntimeError):
    """A call that produced no completion. `transient` says whether a retry could succeed."""

    def __init__(self, why: str, *, transient: bool):
        super().__init__(why)
        self.transient = transient


class Divergence(RuntimeError):
    """A replayed caller made a call that the recording does not contain."""
