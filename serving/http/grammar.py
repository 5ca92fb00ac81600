"""Structured output: JSON schemas, regular expressions and grammars as masks of tokens, by `llguidance`.

A grammar is built in a thread, with limits that make its cost a matter of fuel, not of luck: one that needs
more is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from serving.http.body import Fields, shown
from serving.http.errors import ApiError, bad_field
from serving.http.settings import HttpLimits

FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")  # of vLLM
# Far above what real schemas need: one of 300 properties takes 0.1 s.
LEXER_FUEL = 200_000  # at most half a second, in a thread of its own
GRAMMAR_SIZE = 100_000
LEXER_STATES = 20_000
PROBE_TOK = 4  # tokens that are tried before a grammar is accepted
STEP_FUEL = 40_000  # at most some 30 ms, in the engine's thread


@dataclass(frozen=True)
class GrammarAsked:
    """A grammar as the body names it: its kind for `llguidance`, its source, and the field it came in."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    field: str


def asked(fields: Fields, limits: HttpLimits) -> GrammarAsked | None:
    """The grammar of a body, or None.

    Raises:
      ApiError: 400: more than one, of an unknown type, or too large.
    """
    found = [g for g in (_response_format(fields), *_guided(fields)) if g is not None]
    if len(found) > 1:
        raise bad_field(found[1].field, f"{found[0].field} and {found[1].field} both name a grammar")
    for one in found:
        if len(one.source.encode("utf-8", "replace")) > limits.schema_bytes:
            raise bad_field(one.field, f"{one.field} is larger than {limits.schema_bytes} bytes")
    return found[0] if found else None


def _response_format(fields: Fields) -> GrammarAsked | None:
    given = fields.object("response_format")
    if given is None:
        return None
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarAsked("json_schema", '{"type": "object"}', "response_format")
    if kind != "json_schema":
        message = f"response_format.type is {shown(kind)}; text, json_object and json_schema are known"
        raise bad_field("response_format", message)
    wrapped = given.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict | bool):
        raise bad_field("response_format", "response_format.json_schema.schema must be a JSON schema")
    return GrammarAsked("json_schema", json.dumps(schema), "response_format")


def _guided(fields: Fields) -> list[GrammarAsked | None]:
    found: list[GrammarAsked | None] = []
    schema = fields.raw("guided_json")
    if schema is not None:
        source = schema if isinstance(schema, str) else json.dumps(schema)
        found.append(GrammarAsked("json_schema", source, "guided_json"))
    if (regex := fields.text("guided_regex")) is not None:
        found.append(GrammarAsked("regex", regex, "guided_regex"))
    if (choices := fields.items("guided_choice")) is not None:
        if not choices or not all(isinstance(c, str) and c for c in choices):
            raise bad_field("guided_choice", "guided_choice must be a list of texts, none empty")
        found.append(GrammarAsked("choice", json.dumps(choices), "guided_choice"))
    if (text := fields.text("guided_grammar")) is not None:
        found.append(GrammarAsked("grammar", text, "guided_grammar"))
    return found


class OutputGrammar:
    """The grammar of one output; see `serving.request.TokenGrammar`."""

    def __init__(self, matcher: Any, tokens: int) -> None:
        self._matcher, self._tokens = matcher, tokens

    def fill(self, allowed_W: Any) -> None:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        allowed_W[:] = 0
        count = min(len(mask), len(allowed_W))
        allowed_W[:count] = mask[:count]
        self._forbid_beyond(allowed_W)

    def accept(self, id: int) -> Literal["stop", "length"] | None:
        self._matcher.consume_token(id)
        if (
            self._matcher.is_error()
        ):  # its fuel is used up: what was said so far is the beginning of an answer
            return "length"
        return "stop" if self._matcher.is_stopped() else None

    def _forbid_beyond(self, allowed_W: Any) -> None:
        """Ids without a token, which pad some models' vocabularies."""
        word, bit = divmod(self._tokens, 32)
        if word < len(allowed_W):
            allowed_W[word] &= np.uint32((1 << bit) - 1)
            allowed_W[word + 1 :] = 0


class MakeGrammar:
    """Makes the grammar of one output.

    Attributes:
      given: what was asked for, by which another process can compile it again.
    """

    def __init__(self, given: GrammarAsked, matcher: Any, tokens: int) -> None:
        self.given, self._matcher, self._tokens = given, matcher, tokens

    def __call__(self) -> OutputGrammar:
        return OutputGrammar(self._matcher.deep_copy(), self._tokens)


class GrammarCompiler:
    """Builds grammars for one tokenizer.

    Args:
      tokenizer: of the `tokenizers` library.
      eos_ids: tokens that may end a text. Without any, one beyond the vocabulary stands for the end.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int]) -> None:
        import llguidance

        self._library = llguidance
        self._tokens = tokenizer.get_vocab_size(with_added_tokens=True)
        self._limits = llguidance.LLParserLimits(
            max_grammar_size=GRAMMAR_SIZE,
            initial_lexer_fuel=LEXER_FUEL,
            step_lexer_fuel=STEP_FUEL,
            max_lexer_states=LEXER_STATES,
        )
        ends = [id for id in eos_ids if id < self._tokens]
        words = tokenizer.to_str()
        if not ends:
            ends, words = [self._tokens], _with_an_end(words)
        self._words = llguidance.LLTokenizer(words, eos_token=ends)

    def compile(self, given: GrammarAsked) -> MakeGrammar:
        """A maker of the grammar for each output.

        Raises:
          ApiError: 400: it is not a grammar, or needs too much.
        """
        matcher_of = self._library.LLMatcher
        try:
            source = self._library.grammar_from(given.kind, given.source)
            wrong, messages = matcher_of.validate_grammar_with_warnings(
                source, self._words, limits=self._limits
            )
        except Exception as why:
            raise self._refusal(given, str(why)) from None
        if wrong:
            raise self._refusal(given, messages[0] if messages else "it is not valid")
        first = matcher_of(self._words, source, log_level=0, limits=self._limits)
        if first.is_error():
            raise self._refusal(given, first.get_error())
        if failure := _fails_early(first.deep_copy()):
            raise self._refusal(given, failure)
        return MakeGrammar(given, first, self._tokens)

    def _refusal(self, given: GrammarAsked, why: str) -> ApiError:
        line = why.strip().splitlines()[0][:300] if why.strip() else "it is not valid"
        return bad_field(
            given.field, f"{given.field} is no grammar that can be used: {line}", "invalid_grammar"
        )


def _fails_early(matcher: Any) -> str:
    """Why a grammar runs out of fuel within its first tokens; empty if it does not."""
    for _ in range(PROBE_TOK):
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_error() or matcher.is_stopped() or not allowed.any():
            break
        matcher.consume_token(int(allowed.argmax()))
    return str(matcher.get_error())


def _with_an_end(words: str) -> str:
    """The tokenizer with one token more, which stands for the end of a text that the model cannot say."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(words)
    made.add_special_tokens(["<|end of output|>"])
    text: str = made.to_str()
    return text
