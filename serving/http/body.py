"""JSON bodies from strangers: bounded, strict, and read field by field."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from serving.http.errors import ApiError, bad_field

MAX_DEPTH = 64  # nested arrays and objects; schemas need some, nothing needs more
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
      ApiError: 400: not UTF-8, not JSON (NaN and Infinity are not), not an object, nested too deeply, or a
        text holds half of a character, which no tokenizer takes.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep", code="invalid_json") from None
    except UnicodeDecodeError as why:
        raise ApiError(400, f"the body is not UTF-8: {why.reason}", code="invalid_json") from None
    except ValueError as why:
        raise ApiError(400, f"the body is not JSON: {why}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is a JSON {type(value).__name__}, not an object", code="invalid_json")
    _check(value, 0, bool(_HALF.search(raw)))
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _check(value: Any, depth: int, texts: bool) -> None:
    if depth > MAX_DEPTH:
        raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep", code="invalid_json")
    if isinstance(value, dict):
        for name, item in value.items():
            if texts:
                _check_text(name)
            if isinstance(item, dict | list | str):
                _check(item, depth + 1, texts)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list | str):
                _check(item, depth + 1, texts)
    elif texts and isinstance(value, str):
        _check_text(value)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            message = "a text holds half of a character (a lone surrogate such as \\ud800)"
            raise ApiError(400, message, code="invalid_unicode") from None


class Fields:
    """The fields of a body. A null counts as absent; what nobody asked for is in `unknown`."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._given = {name: value for name, value in body.items() if value is not None}
        self._asked: set[str] = set()

    @property
    def unknown(self) -> list[str]:
        return sorted(self._given.keys() - self._asked)

    def has(self, name: str) -> bool:
        self._asked.add(name)
        return name in self._given

    def raw(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return self._given.get(name, default)

    def whole(self, name: str, default: Any = None) -> Any:
        return self._typed(name, default, _is_whole, "a whole number")

    def number(self, name: str, default: Any = None) -> Any:
        return self._typed(name, default, _is_number, "a finite number")

    def text(self, name: str, default: Any = None) -> Any:
        return self._typed(name, default, lambda v: isinstance(v, str), "a text")

    def flag(self, name: str, default: bool = False) -> bool:
        value: bool = self._typed(name, default, lambda v: isinstance(v, bool), "true or false")
        return value

    def object(self, name: str, default: Any = None) -> Any:
        return self._typed(name, default, lambda v: isinstance(v, dict), "an object")

    def items(self, name: str, default: Any = None) -> Any:
        return self._typed(name, default, lambda v: isinstance(v, list), "a list")

    def _typed(self, name: str, default: Any, ok: Callable[[Any], bool], kind: str) -> Any:
        value = self.raw(name)
        if value is None:
            return default
        if not ok(value):
            raise bad_field(name, f"{name} must be {kind}, not {shown(value)}", "invalid_type")
        return value


def shown(value: Any) -> str:
    """A value as an error message shows it: JSON, cut."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
