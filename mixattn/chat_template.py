"""Chat templates: Jinja in a sandbox, with what Hugging Face's templates rely on.

Beside Jinja's own there are `raise_exception`, `strftime_now`, a `tojson` that escapes nothing, `{% break %}`
and `{% continue %}`, and `{% generation %}`, which marks what an assistant said and prints it unchanged.
Special tokens that a checkpoint does not name are undefined, and so is every key of a message whose value is
null. Imports neither jax nor, before it renders, jinja2.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

type Message = Mapping[str, Any]

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names under which a message's reasoning is passed; templates read the first, or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 64


class TemplateRefusal(Exception):
    """A template said so, by `raise_exception`."""


def render(
    templates: Mapping[str, str],
    settings: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    add_generation_prompt: bool = True,
    where: object = "the model",
    **variables: Any,
) -> str:
    """The text of a conversation.

    Args:
      templates: by name; see `choose`.
      settings: contents of tokenizer_config.json, for the special tokens.
      template: name of the template, or a template itself.
      add_generation_prompt: end where the assistant's answer begins.
      variables: what else the template may use.

    Raises:
      ValueError: there is no such template, it does not render, or it refuses the messages.
    """

    text = choose(templates, template, tools, where)
    given: dict[str, Any] = {**special_tokens(settings), **variables, "messages": list(messages)}
    given |= {"tools": None if tools is None else list(tools), "documents": documents and list(documents)}
    given["add_generation_prompt"] = add_generation_prompt
    try:
        return _compiled(text).render(context(given))
    except TemplateRefusal as why:
        raise ValueError(f"the chat template of {where} refuses these messages: {_first_line(why)}") from why
    except (RecursionError, MemoryError) as why:
        raise ValueError(f"the chat template of {where} does not end: {type(why).__name__}") from why
    except Exception as why:  # a template may do anything wrong that Python can
        raise ValueError(f"the chat template of {where} does not render: {_first_line(why)}") from why


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names, by role."""
    found = {name: token_text(settings.get(name)) for name in _TOKENS}
    return {name: text for name, text in found.items() if text}


def token_text(value: Any) -> str:
    """The text of a special token, which tokenizer_config.json stores as a string or as an object."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def context(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees: `messages` without nulls, `tools` and `documents` null where there are none."""
    messages = [_message(message) for message in variables.get("messages", ())]
    plain: dict[str, Any] = _plain({"tools": None, "documents": None, **variables, "messages": messages})
    return plain


def choose(templates: Mapping[str, str], name: str | None, tools: Sequence[Any] | None, where: object) -> str:
    """The template called `name`, else `name` itself; None: "tool_use" if there are tools, or "default"."""
    if name is not None:
        return templates.get(name, name)
    if not templates:
        raise ValueError(f"{where} has no chat template (chat_template.jinja or tokenizer_config.json)")
    if tools is not None and "tool_use" in templates:
        return templates["tool_use"]
    if "default" not in templates:
        raise ValueError(
            f"{where} has chat templates {', '.join(sorted(templates))} but no default; name one"
        )
    return templates["default"]


def _message(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is {message!r}; it must be an object with a role and a content")
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[name] for name in _REASONING if name in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy out of JSON's types: templates come from strangers and get nothing with methods of its own."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested more than {_MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item, depth + 1) for item in value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


@lru_cache(maxsize=16)
def _compiled(text: str) -> "jinja2.Template":
    return environment().from_string(text)


def environment() -> "ImmutableSandboxedEnvironment":
    """A sandbox with what Hugging Face's templates expect to find."""
    import jinja2
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}...{% endgeneration %}` prints its body."""

        tags = {"generation"}  # noqa: RUF012  Jinja's own declaration

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

        def _print(self, caller: Any) -> str:
            return str(caller())

    class Namespace(jinja2.utils.Namespace):
        """Without attributes that Python itself uses."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")
            super().__setitem__(name, value)

    class Dict:
        """`dict(...)` without the class, whose attributes lead to Python's own."""

        def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
            return dict(*args, **fields)

    def raise_exception(message: str) -> None:
        raise TemplateRefusal(message)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    made.globals |= {"namespace": Namespace, "dict": Dict()}
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _first_line(why: BaseException) -> str:
    return (str(why).strip().splitlines() or [type(why).__name__])[0]
