"""Text generation: `generate` with a tokenizer, and the chat template of a checkpoint.

model, config = hf.load(directory)
tokenizer = hf.load_tokenizer(directory)
complete(model, tokenizer, ["def main("], max_new_tokens=32, temperature=0.8)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from mixattn import chat_template
from mixattn.generation import generate
from mixattn.hf import chat_templates, encode, open_source, tokenizer_settings
from mixattn.model import Transformer


def complete(
    model: Transformer, tokenizer: tokenizers.Tokenizer, prompts: Sequence[str], **options: Any
) -> list[str]:
    """The continuation of each prompt, without the stop token; `options` are those of `generate`.

    A prompt that begins with the begin-of-text token, as chat prompts may, does not get another one.
    """
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    stop = set(options.get("stop_ids", ()))
    new = generate(model, ids, **options)
    return tokenizer.decode_batch([row[:-1] if row and row[-1] in stop else row for row in new])


def chat_prompt(path: str | Path, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Renders `{"role": ..., "content": ...}` messages with a checkpoint's chat template.

    The template is chat_template.jinja, otherwise `chat_template` of tokenizer_config.json, or the one in a
    GGUF file. `options` are `tools`, `documents`, `template`, `add_generation_prompt` (on: the prompt ends
    where the assistant's answer begins), and whatever else the template reads.

    The text has the special tokens in it: encode it by `chat_ids`, or with `hf.encode`, which doubles none.

    Raises:
      ValueError: there is no template, it does not render, or it refuses the messages.
    """
    return chat_template.render(
        chat_templates(path), tokenizer_settings(path), messages, where=path, **options
    )


def chat_ids(path: str | Path, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    """Token ids of `chat_prompt`; the template alone decides which special tokens there are.

    Raises:
      ValueError: as `chat_prompt`, or there is no tokenizer.
    """
    text = chat_prompt(path, messages, **options)
    return list(open_source(path).tokenizer().encode(text, add_special_tokens=False).ids)


def reference_manual() -> str:
    """English prose that every Python has: its language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
