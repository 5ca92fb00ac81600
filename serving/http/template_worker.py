"""Renders chat templates, in a process of its own: the template is the checkpoint's and the messages are a
stranger's, so time and memory are bounded by the system, and the sandbox keeps both from everything else.

One JSON object per line in, one per line out. Started by `templates`; imports nothing of the server.
"""

import datetime
import json
import resource
import sys
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20


class RefusedByTemplate(Exception):
    """The template called `raise_exception`."""


def environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's templates expect to find."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.filters["tojson"] = _tojson
    return made


def _raise_exception(message: Any) -> NoReturn:
    raise RefusedByTemplate(str(message)[:500])


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def render(
    made: ImmutableSandboxedEnvironment, asked: dict[str, Any], templates: dict[str, Any]
) -> dict[str, Any]:
    """{"text": ...}, or {"refused": ...} where the template or its messages are at fault."""
    try:
        source, most = asked["template"], asked["max_chars"]
        if source not in templates:
            templates.clear()
            templates[source] = made.from_string(source)
        pieces, size = [], 0
        for piece in templates[source].generate(asked["variables"]):
            size += len(piece)
            if size > most:
                return {"refused": f"it renders to more than {most} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except RefusedByTemplate as why:
        return {"refused": str(why)}
    except MemoryError:
        return {"refused": "it needs too much memory"}
    except (jinja2.TemplateError, Exception) as why:  # whatever a template's expression may raise
        return {"refused": f"{type(why).__name__}: {str(why)[:300]}"}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    made = environment()
    templates: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        answer = render(made, json.loads(line), templates)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
