"""Renders chat templates, in a process of its own: the template is the checkpoint's and the messages are a
stranger's, so time and memory are bounded by the system, and the sandbox keeps both from everything else.

One JSON object per line in, one per line out. Started by `templates`; imports nothing of the server, and of
this project only what templates may use (`mixattn.chat_template`).
"""

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is started alone, by its path

from mixattn.chat_template import TemplateRefusal, context, environment

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20


def render(
    made: "ImmutableSandboxedEnvironment", asked: dict[str, Any], templates: dict[str, Any]
) -> dict[str, Any]:
    """{"text": ...}, or {"refused": ...} where the template or its messages are at fault."""
    try:
        source, most = asked["template"], asked["max_chars"]
        if source not in templates:
            templates.clear()
            templates[source] = made.from_string(source)
        pieces, size = [], 0
        for piece in templates[source].generate(context(asked["variables"])):
            size += len(piece)
            if size > most:
                return {"refused": f"it renders to more than {most} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except TemplateRefusal as why:
        return {"refused": str(why)[:500]}
    except MemoryError:
        return {"refused": "it needs too much memory"}
    except Exception as why:  # whatever a template's expression may raise
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
