"""Messages of a request line, checked, and turned into token ids by the model's chat template."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

type Message = dict[str, Any]
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
    """What else a message holds (tool calls, reasoning, a name) is the template's to read."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {number} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None and message.get("tool_calls"):
        return {name: value for name, value in message.items() if name != "content"}
    if not isinstance(content, str):
        raise ValueError(f"message {number} must have text as its content")
    return message | {"content": content}


def renderer(model: str | Path, tokenizer: "Tokenizer", **variables: Any) -> RenderMessages:
    """Messages -> ids by the template of the checkpoint at `model`; its files are read once.

    The template writes the begin-of-text token itself where the model wants one, so the tokenizer adds none.
    """
    from mixattn import chat_template, hf

    templates, settings = hf.chat_templates(model), hf.tokenizer_settings(model)

    def ids(messages: Sequence[Message]) -> list[int]:
        text = chat_template.render(templates, settings, messages, where=model, **variables)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return ids
