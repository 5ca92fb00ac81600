"""Tools of a chat: shown to the model by its template, and read out of what it says.

`auto` lets the model choose; `required` or a named function restricts its answer to a call, by a grammar of
the functions' parameters. Calls are read from `<tool_call>` marks, from Mistral's `[TOOL_CALLS]`, or from an
answer that is one JSON object with a name and arguments.
"""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.http.body import Fields, shown
from serving.http.errors import bad_field
from serving.http.grammar import GrammarAsked

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARKED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.S)
_MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True)
class ToolsAsked:
    """The tools of a call.

    Attributes:
      shown: as the template gets them.
      grammar: what the answer must be; None = any text.
    """

    shown: Sequence[dict[str, Any]]
    grammar: GrammarAsked | None

    @property
    def names(self) -> set[str]:
        return {tool["function"]["name"] for tool in self.shown}

    def reader(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """The text beside tool calls, and the calls."""
        return read(text, self.names)


def asked(fields: Fields) -> ToolsAsked | None:
    """The tools of a body; None where it names none or chooses none.

    Raises:
      ApiError: 400: not tools, or a choice that is none of them.
    """
    given, choice = fields.items("tools", []), fields.raw("tool_choice")
    tools = [_tool(i, tool) for i, tool in enumerate(given)]
    names = [tool["function"]["name"] for tool in tools]
    if len(tools) > MAX_TOOLS:
        raise bad_field("tools", f"tools holds {len(tools)} functions; at most {MAX_TOOLS}")
    if len(set(names)) < len(names):
        raise bad_field("tools", "tools holds the same name twice")
    if choice in (None, "none", "auto"):
        return ToolsAsked(tools, None) if tools and choice != "none" else None
    if not tools:
        raise bad_field("tool_choice", "tool_choice needs tools")
    if choice == "required":
        return ToolsAsked(tools, _grammar(tools))
    name = choice.get("function", {}) if isinstance(choice, dict) else None
    name = name.get("name") if isinstance(name, dict) else None
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        message = f"tool_choice is {shown(choice)}; none, auto, required, or a function of tools"
        raise bad_field("tool_choice", message)
    return ToolsAsked(tools, _grammar(chosen))


def _tool(i: int, tool: Any) -> dict[str, Any]:
    where = f"tools[{i}]"
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise bad_field(where, f'{where} must be {{"type": "function", "function": {{"name": ...}}}}')
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        raise bad_field(where, f"{where}.function.name must be 1 to 64 letters, digits, _ . or -")
    if not isinstance(function.get("parameters", {}), dict):
        raise bad_field(where, f"{where}.function.parameters must be a JSON schema")
    kept = {name: function[name] for name in ("name", "description", "parameters") if name in function}
    return {"type": "function", "function": kept}


def _grammar(tools: Sequence[dict[str, Any]]) -> GrammarAsked:
    """A JSON object that calls one of `tools`."""
    choices = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return GrammarAsked("json_schema", json.dumps({"anyOf": choices}), "tools")


def read(text: str, names: set[str]) -> tuple[str, list[dict[str, Any]]]:
    """See `ToolsAsked.reader`; what is not a call of one of `names` stays text."""
    marked = _MARKED.findall(text)
    if marked and (calls := _calls(marked, names)):
        return _MARKED.sub("", text).strip(), calls
    before, mark, after = text.partition(_MISTRAL)
    if mark and (calls := _calls([after], names)):
        return before.strip(), calls
    calls = _calls([text], names)
    return ("", calls) if calls else (text, [])


def _calls(sources: Sequence[str], names: set[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for source in sources:
        try:
            value = json.loads(source)
        except (ValueError, RecursionError):
            return []
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict) or one.get("name") not in names:
                return []
            arguments = one.get("arguments", one.get("parameters", {}))
            words = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            function = {"name": one["name"], "arguments": words}
            found.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return found


def for_template(calls: list[Any]) -> list[Any]:
    """Earlier calls as templates read them: arguments as objects, not as JSON in a text."""
    made = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                arguments = function["arguments"]
            call = {**call, "function": {**function, "arguments": arguments}}
        made.append(call)
    return made
