"""The language-model protocol: its methods, their results, and their errors.

Retrying is left to the caller (`retry.call_with_retries`): a backend raises `CallFailed`, which says whether
a retry could succeed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

type Prompt = str | Sequence[int]
type Messages = Sequence[Mapping[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}


class CallOptions(TypedDict, total=False):
    """The options of a call; see `LanguageModel.complete`."""

    max_tokens: int
    temperature: float
    seed: int | None
    priority: int
    client: str
    stop: Sequence[str]


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


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer under way. The last one has a `finish_reason`, and the token counts."""

    text: str
    finish_reason: str = ""
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The natural log-probability of a given continuation, summed over its `tokens` tokens."""

    log_probability: float
    tokens: int

    @property
    def per_token(self) -> float:
        """The mean log-probability of a token; -inf for a continuation without tokens."""
        return self.log_probability / self.tokens if self.tokens else float("-inf")


class LanguageModel(Protocol):
    """Anything that completes prompts. A class that inherits from it needs to define `complete` only."""

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

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        """Answers a conversation. A model without a chat format of its own is sent `as_text(messages)`."""
        return await self.complete(as_text(messages), **options)

    async def stream_messages(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> AsyncIterator[Piece]:
        """Answers a conversation in pieces; here the whole answer is the only one.

        Raises:
          CallFailed: while iterating; pieces that came before it stand.
        """
        whole = await self.complete_messages(messages, **options)
        yield Piece(whole.text, whole.finish_reason, whole.usage)

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        """How likely each text is as the assistant's answer to `messages`, in the order of `continuations`.

        Raises:
          CallFailed: not transient if this model does not tell log-probabilities.
        """
        raise CallFailed(f"{type(self).__name__} does not tell log-probabilities", transient=False)


def as_text(messages: Messages) -> str:
    """A conversation as plain text that ends where the assistant's answer begins."""
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


class CallFailed(RuntimeError):
    """A call that produced no completion. `transient` says whether a retry could succeed.

    Attributes:
      retry_after_s: the pause that the server asked for, if it did.
    """

    def __init__(self, why: str, *, transient: bool, retry_after_s: float | None = None):
        super().__init__(why)
        self.transient = transient
        self.retry_after_s = retry_after_s


class Divergence(RuntimeError):
    """A replayed caller made a call that the recording does not contain."""
