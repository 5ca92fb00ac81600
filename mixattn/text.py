"""Strings in, strings out: the tokenizer around `generate`, and the chat template a checkpoint brings along.

model, config = hf.load(directory)
tokenizer = hf.load_tokenizer(directory)
complete(model, tokenizer, ["def main("], max_new_tokens=32, temperature=0.8)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mixattn.generation import generate
from mixattn.hf.checkpoint_dir import read_json
from mixattn.model import Transformer


def complete(
    model: Transformer, tokenizer: tokenizers.Tokenizer, prompts: Sequence[str], **options: Any
) -> list[str]:
    """The continuation of each prompt; `options` are those of `generate`. A stop id is not part of the
    text."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    stop = set(options.get("stop_ids", ()))
    new = generate(model, ids, **options)
    return tokenizer.decode_batch([row[:-1] if row and row[-1] in stop else row for row in new])


def chat_prompt(directory: str | Path, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
    """The prompt that a checkpoint's own chat template makes of `{"role": ..., "content": ...}` messages.

    The template is chat_template.jinja, else `chat_template` in tokenizer_config.json, whose special
    tokens it may name; `variables` are handed to it. It ends where the assistant's answer begins.

    Raises:
      ValueError: there is no template, it does not render, or it refuses the messages.
    """
    import jinja2  # an extra; only chat needs it
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    directory = Path(directory)
    settings = directory / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    file = directory / "chat_template.jinja"
    template = file.read_text() if file.exists() else config.get("chat_template")
    if not isinstance(template, str):
        raise ValueError(f"{directory} has no chat template (chat_template.jinja or tokenizer_config.json)")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    special = {key: _word(value) for key, value in config.items() if key.endswith("_token")}
    try:
        known = {**special, **variables, "messages": list(messages), "add_generation_prompt": True}
        return environment.from_string(template).render(known)
    except jinja2.TemplateError as why:
        raise ValueError(f"the chat template of {directory} does not render: {why}") from why


def _word(value: Any) -> Any:
    """tokenizer_config.json spells a special token as a string or as an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses these messages: {message}")
