"""Text generation: `generate` with a tokenizer, and the chat template of a checkpoint.

model, config = hf.load(directory)
tokenizer = hf.load_tokenizer(directory)
complete(model, tokenizer, ["def main("], max_new_tokens=32, temperature=0.8)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mixattn.generation import generate
from mixattn.hf import tokenizer_settings
from mixattn.model import Transformer


def complete(
    model: Transformer, tokenizer: tokenizers.Tokenizer, prompts: Sequence[str], **options: Any
) -> list[str]:
    """The continuation of each prompt, without the stop token; `options` are those of `generate`."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    stop = set(options.get("stop_ids", ()))
    new = generate(model, ids, **options)
    return tokenizer.decode_batch([row[:-1] if row and row[-1] in stop else row for row in new])


def chat_prompt(path: str | Path, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
    """Renders `{"role": ..., "content": ...}` messages with a checkpoint's chat template.

    The template is chat_template.jinja, otherwise `chat_template` of tokenizer_config.json, or the one in a
    GGUF file. It can use the special tokens named beside it and `variables`. The prompt ends where the
    assistant's answer begins.

    Raises:
      ValueError: there is no template, it does not render, or it refuses the messages.
    """
    import jinja2  # an optional dependency that only chat needs
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    config = tokenizer_settings(path)
    template = config.get("chat_template")
    if not isinstance(template, str):
        raise ValueError(f"{path} has no chat template (chat_template.jinja or tokenizer_config.json)")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    special = {key: _token_text(value) for key, value in config.items() if key.endswith("_token")}
    try:
        context = {**special, **variables, "messages": list(messages), "add_generation_prompt": True}
        return environment.from_string(template).render(context)
    except jinja2.TemplateError as why:
        raise ValueError(f"the chat template of {path} does not render: {why}") from why


def _token_text(value: Any) -> Any:
    """The text of a special token, which tokenizer_config.json stores as a string or as an object."""
    return value.get("content") if isinstance(value, dict) else value


def _raise_exception(message: str) -> None:
    raise ValueError(f"the chat template refuses these messages: {message}")
