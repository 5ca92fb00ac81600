"""Messages of a request line, checked, and turned into token ids by the model's chat template."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

type Message = dict[str, str]
type RenderMessages = Callable[[Sequence[Message]], list[int]]


def checked(messages: Any) -> list[Message]:
    """Messages with text contents; a content in parts is joined.

    Raises:
      ValueError: not a list of messages, or a part that is not text.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    return [_message(number, message) for number, message in enumerate(messages, 1)]


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {number} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number} must have text as its content")
    return {"role": message["role"], "content": content}


def renderer(model: str | Path, tokenizer: "Tokenizer") -> RenderMessages:
    """Messages -> ids by the template of the checkpoint at `model`.

    The template writes the begin-of-text token itself where the model wants one, so the tokenizer adds none.
    """
    from mixattn.text import chat_prompt

    def ids(messages: Sequence[Message]) -> list[int]:
        return list(tokenizer.encode(chat_prompt(model, messages), add_special_tokens=False).ids)

    return ids
