"""The one way in for tokenizers: training, serving, chat and evaluations all open them here.

A tokenizer.json carries more than a tokenizer: it may cut texts, pad them, and add tokens around them. What
comes out here neither cuts nor pads, adds the begin-of-text token once or not at all, and is known to work.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from mixattn.chat_template import token_text
from mixattn.hf import json_file

NAME = "tokenizer.json"
# What tokenizers call the token that ends a text, best first.
END_NAMES = (
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|file|>", "[EOS]", "<|end|>"),
    *("<|eot_id|>", "<|im_end|>", "<|return|>"),
)


class UnknownToken(ValueError):
    """The settings name a token that the tokenizer does not have."""


def read_tokenizer(path: str | Path, settings: Mapping[str, Any] | None = None) -> tokenizers.Tokenizer:
    """Opens a tokenizer.json, or the one in a folder.

    Args:
      settings: contents of tokenizer_config.json, whose `add_bos_token` and `add_eos_token` take precedence.

    Raises:
      ValueError: it is missing, damaged, or does not encode.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    json_file.read_object(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer = plain(tokenizer, settings or {})
        tokenizer.decode(tokenizer.encode("A text, 1.").ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except UnknownToken as why:
        raise ValueError(f"{path} {why}") from why
    except BaseException as why:  # the library raises a bare Exception, and on some damage panics
        raise ValueError(f"{path} is not a tokenizer: {' '.join(str(why).split())[:200]}") from why
    return tokenizer


def plain(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The same tokenizer without truncation and padding, with the tokens around a text as `settings` say."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    before, after = around(tokenizer)
    wanted = _wanted(tokenizer, settings, "bos", before), _wanted(tokenizer, settings, "eos", after)
    if wanted != (before, after):
        tokenizer.post_processor = _template(tokenizer, *wanted)
    return tokenizer


def around(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that encoding puts before and behind a text."""
    # Some text that the tokenizer knows: one without a byte alphabet drops what it does not.
    for sample in ("a", *itertools.islice(tokenizer.get_vocab(with_added_tokens=False), 100)):
        if text := tokenizer.encode(sample, add_special_tokens=False).ids:
            break
    whole = tokenizer.encode(sample).ids
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    return [], []


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of a prompt: with the tokens that begin a text, once even if the text spells them out itself."""
    ids: list[int] = tokenizer.encode(text).ids
    before, _ = around(tokenizer)
    n = len(before)
    return ids[n:] if n and ids[n : 2 * n] == before else ids


def end_token(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], named: str = "", where: object = NAME
) -> int:
    """The id that ends a text, and so separates documents.

    Args:
      named: the token's text, where somebody said; otherwise `eos_token` of the settings, or a token that
        tokenizers commonly call so.

    Raises:
      ValueError: the named token is not there, or none is known.
    """
    text = named or token_text(settings.get("eos_token"))
    if text:
        id = tokenizer.token_to_id(text)
        if id is None:
            raise ValueError(f"{where} has no token {text!r}, which is said to end a text")
        return id
    added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
    for name in END_NAMES:
        if name in added:
            return added[name]
    raise ValueError(
        f"{where} names no token that ends a text (eos_token in tokenizer_config.json), and has none of "
        f"{', '.join(END_NAMES[:5])}; name one"
    )


def _wanted(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], name: str, own: list[int]
) -> list[int]:
    """What the settings put before or behind a text; `own` where they do not say."""
    adds, text = settings.get(f"add_{name}_token"), token_text(settings.get(f"{name}_token"))
    if adds is None:
        return own
    if not adds or not text:  # without a name transformers adds none either
        return []
    if (id := tokenizer.token_to_id(text)) is None:
        raise UnknownToken(f"has no token {text!r}, which tokenizer_config.json has as {name}_token")
    return [id]


def _template(
    tokenizer: tokenizers.Tokenizer, before: list[int], after: list[int]
) -> processors.TemplateProcessing:
    tokens = {id: tokenizer.id_to_token(id) for id in (*before, *after)}
    single = [*(tokens[id] for id in before), "$A", *(tokens[id] for id in after)]
    return processors.TemplateProcessing(
        single=single, special_tokens=[(text, id) for id, text in tokens.items()]
    )
