"""What lies beside a checkpoint's config and weights, read whole and written whole.

    tokenizer.json   tokenizer_config.json   chat_template.jinja   additional_chat_templates/NAME.jinja
    generation_config.json

`convert` and `save` carry all of it. Ids of special tokens come from generation_config.json, then
config.json, then the names in tokenizer_config.json, and are written into all three, so that every reader
finds them.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from mixattn.chat_template import token_text
from mixattn.hf import json_file, tokenizer_file

GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
TOKEN_MAP = "special_tokens_map.json"  # of older versions
FILES = (tokenizer_file.NAME, TOKENIZER_CONFIG, TEMPLATE, GENERATION, TOKEN_MAP)
_ROLES = ("bos", "eos", "pad", "unk")
# How transformers makes a tokenizer of its own choice; ours is tokenizer.json as it is.
_NOT_CARRIED = {
    *("added_tokens_decoder", "auto_map", "tokenizer_class", "vocab_file", "tokenizer_file"),
    *("name_or_path", "add_bos_token", "add_eos_token", "chat_template", "processor_class", "legacy"),
    *("sp_model_kwargs", "use_default_system_prompt", "backend", "is_local", "local_files_only"),
    *("special_tokens_map_file", "from_slow", "add_prefix_space", "trim_offsets", "fix_mistral_regex"),
}


class SpecialIds(NamedTuple):
    """Ids of the tokens that begin, end and pad a text, as far as there are any."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None


@dataclasses.dataclass(frozen=True)
class Companions:
    """Attributes:
    settings: contents of tokenizer_config.json, without templates.
    templates: chat templates by name; the usual one is "default".
    generation: contents of generation_config.json.
    ids: special tokens that config.json names.
    """

    tokenizer: tokenizers.Tokenizer | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def special_ids(self, vocab_size: int, where: object = "the checkpoint") -> SpecialIds:
        """The ids of all special tokens, checked.

        Raises:
          ValueError: names the file, the field and the value that is no token of the vocabulary.
        """
        found = {role: self._declared(role, vocab_size, where) for role in ("bos", "eos", "pad")}
        one = {role: ids[0] if ids else None for role, ids in found.items()}
        return SpecialIds(one["bos"], tuple(found["eos"]), one["pad"])

    def _declared(self, role: str, vocab_size: int, where: object) -> list[int]:
        field = f"{role}_token_id"
        for file, values in ((GENERATION, self.generation), ("config.json", self.ids)):
            if values.get(field) is not None:
                return _ids(values[field], f"{where}: {file} has {field}", vocab_size, role)
        id = None
        if self.tokenizer is not None and (text := token_text(self.settings.get(f"{role}_token"))):
            id = self.tokenizer.token_to_id(text)
        return [] if id is None else [id]

    def texts(self, ids: SpecialIds, max_tok: int) -> dict[str, str]:
        """The files' contents by name; without a tokenizer only the generation settings."""
        texts: dict[str, str] = {}
        if self.generation or any(value is not None for value in id_fields(ids).values()):
            texts[GENERATION] = _json({**self.generation, **id_fields(ids)})
        if self.tokenizer is None:
            return texts
        texts[tokenizer_file.NAME] = self.tokenizer.to_str(pretty=True)
        texts[TOKENIZER_CONFIG] = _json(self._written_settings(ids, max_tok))
        for name, template in self.templates.items():
            texts[TEMPLATE if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja"] = template
        return texts

    def _written_settings(self, ids: SpecialIds, max_tok: int) -> dict[str, Any]:
        settings = {name: value for name, value in self.settings.items() if name not in _NOT_CARRIED}
        assert self.tokenizer is not None
        for role, id in (("bos", ids.bos), ("eos", ids.eos[0] if ids.eos else None), ("pad", ids.pad)):
            # Naming an ordinary piece makes transformers cut texts at it, and so encode them differently.
            named = token_text(settings.get(f"{role}_token"))
            if id is not None and not named and id in self.tokenizer.get_added_tokens_decoder():
                settings[f"{role}_token"] = self.tokenizer.id_to_token(id)
        names = {f"{role}_token" for role in _ROLES}
        # Without null, transformers adds tokens of its own, whose ids the model does not have.
        settings = dict.fromkeys(sorted(names)) | settings
        settings = {k: token_text(v) or None if k in names else v for k, v in settings.items()}
        return {"model_max_length": max_tok, **settings, "tokenizer_class": "PreTrainedTokenizerFast"}


def id_fields(ids: SpecialIds) -> dict[str, Any]:
    """The fields of config.json and generation_config.json; null says that there is none."""
    eos: Any = None if not ids.eos else ids.eos[0] if len(ids.eos) == 1 else list(ids.eos)
    return {"bos_token_id": ids.bos, "eos_token_id": eos, "pad_token_id": ids.pad}


def read_settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and an older file of special tokens beside it; possibly nothing."""
    settings = _optional(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in settings:
        settings |= _optional(folder / TOKEN_MAP)
    return settings


def read_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates: files of their own, otherwise those in tokenizer_config.json."""
    files = {"default": folder / TEMPLATE}
    files |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    found = {name: _text(path) for name, path in files.items() if path.exists()}
    return found or named_templates(settings.get("chat_template"), folder / TOKENIZER_CONFIG)


def named_templates(value: Any, where: object) -> dict[str, str]:
    """Templates by name out of `chat_template`: one text, a list with names, or an object.

    Raises:
      ValueError: something else.
    """
    if value is None:
        return {}
    if isinstance(value, list) and all(
        isinstance(x, dict) and {"name", "template"} <= x.keys() for x in value
    ):
        value = {x["name"]: x["template"] for x in value}
    value = {"default": value} if isinstance(value, str) else value
    if isinstance(value, dict) and all(isinstance(x, str) for x in (*value, *value.values())):
        if bad := [name for name in value if not name.replace("_", "").replace("-", "").isalnum()]:
            raise ValueError(f"{where} has a chat template named {bad[0]!r}")
        return value
    raise ValueError(f"{where} has a chat_template that is neither a text nor a list of named ones")


def read_generation(folder: Path) -> dict[str, Any]:
    """What generation_config.json says, its numbers checked; possibly nothing.

    Raises:
      ValueError: names the file, the field and its value.
    """
    path = folder / GENERATION
    settings = _optional(path)
    for name, (ok, rule) in _GENERATION_RULES.items():
        value = settings.get(name)
        if value is not None and not ok(value):
            raise ValueError(f"{path} has {name}={value!r}; it must be {rule}")
    return settings


def _ids(value: Any, what: str, vocab_size: int, role: str) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if role != "eos" and value == -1:  # how the first files said "none"
        return []
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < vocab_size:
            raise ValueError(f"{what}={value!r}; ids are whole numbers from 0 to {vocab_size - 1}")
    if role != "eos" and len(ids) != 1:
        raise ValueError(f"{what}={value!r}; it must be one id")
    return list(dict.fromkeys(ids))


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


_GENERATION_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (lambda x: isinstance(x, bool), "true or false"),
    "temperature": (lambda x: _number(x, 0, 1e30), "a number from 0 up"),
    "top_k": (lambda x: isinstance(x, int) and _number(x, -1, 2**31 - 1), "a whole number from 0 up"),
    "top_p": (lambda x: _number(x, 0, 1), "a number from 0 to 1"),
    "min_p": (lambda x: _number(x, 0, 1), "a number from 0 to 1"),
    "repetition_penalty": (lambda x: _number(x, 1e-30, 2), "a number above 0, at most 2"),
}


def _optional(path: Path) -> dict[str, Any]:
    return json_file.read_object(path) if path.exists() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as why:
        raise ValueError(f"{path} is not UTF-8: {why}") from why


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
