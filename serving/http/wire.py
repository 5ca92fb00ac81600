"""Bodies of the generating routes, checked: what was asked for, before any text is tokenised."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.http import grammar as grammars
from serving.http import tool_calls
from serving.http.body import Fields, shown
from serving.http.errors import ApiError, bad_field
from serving.http.grammar import GrammarAsked
from serving.http.settings import HttpLimits
from serving.http.tool_calls import ToolsAsked
from serving.request import RequestKeep, Sampling

type Kind = Literal["completion", "chat", "ids"]

MAX_TOP = 20  # alternatives with log-probabilities
DEFAULT_MAX_TOKENS = 16  # of completions; a chat may use all the room there is
UNSUPPORTED = (
    "suffix",
    "audio",
    "modalities",
    "functions",
    "function_call",
    "prediction",
    "web_search_options",
)
# Fields that change nothing here and are no mistake.
HARMLESS = (
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
)


@dataclass(kw_only=True)
class GenerationCall:
    """One call of a generating route.

    Attributes:
      prompts: texts or ids, one per prompt; empty for a chat.
      messages: of a chat.
      sampling: fields of `Sampling`, without `max_tokens` where the call names none.
      max_tokens: None = what there is room for; 0 = only score the prompt.
      logprobs: alternatives to report; None = no log-probabilities.
      priority: as `Request.priority`: higher first.
      keep: as `Request.keep`.
    """

    kind: Kind
    sampling: dict[str, Any]
    prompts: list[str | list[int]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    max_tokens: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    logprobs: int | None = None
    user: str | None = None
    priority: int = 0
    cache_salt: str = ""
    keep: RequestKeep | None = None
    timeout_s: float | None = None
    rid: str | None = None
    skip_special: bool = True
    add_special: bool = True
    template_variables: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    grammar: GrammarAsked | None = None
    tools: ToolsAsked | None = None

    @property
    def score_only(self) -> bool:
        return self.max_tokens == 0

    @property
    def outputs(self) -> int:
        return max(1, len(self.prompts)) * self.n

    @property
    def guessed_chars(self) -> int:
        """Size of what is to be tokenised; an id counts as four characters."""
        texts = sum(len(p) if isinstance(p, str) else 4 * len(p) for p in self.prompts)
        return texts + sum(len(str(m.get("content") or "")) for m in self.messages)


def completion(fields: Fields, limits: HttpLimits) -> GenerationCall:
    """The body of /v1/completions."""
    _refuse_unsupported(fields)
    call = _common(fields, "completion", limits)
    call.max_tokens = fields.whole("max_tokens", DEFAULT_MAX_TOKENS)
    call.echo = fields.flag("echo")
    call.logprobs = _top(fields, "logprobs")
    call.prompts = _prompts(fields.raw("prompt"), limits.outputs)
    call.add_special = fields.flag("add_special_tokens", True)
    call.grammar = grammars.asked(fields, limits)
    if (best_of := fields.whole("best_of", 1)) != 1:
        raise bad_field("best_of", f"best_of is {best_of}; only 1 is supported", "unsupported_value")
    if call.echo and call.logprobs is not None:
        call.sampling["prompt_logprobs"] = call.logprobs
    _check_sizes(call, limits)
    return call


def chat(fields: Fields, limits: HttpLimits) -> GenerationCall:
    """The body of /v1/chat/completions."""
    _refuse_unsupported(fields)
    call = _common(fields, "chat", limits)
    named = [n for n in ("max_completion_tokens", "max_tokens") if fields.has(n)]
    call.max_tokens = fields.whole(named[0]) if named else None
    if call.max_tokens is not None and call.max_tokens < 1:
        raise bad_field(named[0], f"{named[0]} is {call.max_tokens}; it must be at least 1")
    top = fields.whole("top_logprobs")
    if fields.flag("logprobs"):
        call.logprobs = _top(fields, "top_logprobs") or 0
    elif top:
        raise bad_field("top_logprobs", "top_logprobs needs logprobs to be true")
    call.messages = messages(fields.raw("messages"))
    call.add_generation_prompt = fields.flag("add_generation_prompt", True)
    call.template_variables = fields.object("chat_template_kwargs", {})
    if taken := sorted(call.template_variables.keys() & {"messages", "tools", "add_generation_prompt"}):
        message = f"chat_template_kwargs may not hold {taken[0]}, which is a field of the body"
        raise bad_field("chat_template_kwargs", message)
    if fields.has("chat_template"):
        raise bad_field("chat_template", "the template is the server's; start it with --chat_template=FILE")
    call.add_special = False
    call.tools = tool_calls.asked(fields)
    call.grammar = grammars.asked(fields, limits)
    if call.tools is not None and call.tools.grammar is not None:
        if call.grammar is not None:
            raise bad_field("tool_choice", f"tool_choice and {call.grammar.field} both restrict the answer")
        call.grammar = call.tools.grammar
    _check_sizes(call, limits)
    return call


def ids(fields: Fields, limits: HttpLimits) -> GenerationCall:
    """The body of /generate: ids in, ids out."""
    _refuse_unsupported(fields)
    given = fields.object("sampling_params", {})
    clash = sorted(given.keys() & {"input_ids", "sampling_params", "rid", "stream"})
    if clash:
        raise bad_field("sampling_params", f"sampling_params may not hold {clash[0]}")
    inner = Fields(_beside(fields) | given)
    call = _common(inner, "ids", limits)
    named = [n for n in ("max_new_tokens", "max_tokens") if inner.has(n)]
    call.max_tokens = inner.whole(named[0]) if named else DEFAULT_MAX_TOKENS
    prompt = fields.raw("input_ids")
    if prompt is None:
        raise bad_field("input_ids", "input_ids is missing: a list of token ids, or a list of such lists")
    call.prompts = _prompts(prompt, limits.outputs, "input_ids")
    if any(isinstance(p, str) for p in call.prompts):
        raise bad_field("input_ids", "input_ids must be token ids, not text")
    call.logprobs = _top(inner, "logprobs")
    _check_sizes(call, limits)
    return call


def _beside(fields: Fields) -> dict[str, Any]:
    """The other fields of a /generate body, which may stand beside `sampling_params` or in it."""
    names = (
        *("stream", "rid", "user", "priority", "cache_salt", "keep", "timeout", "n", "seed", "logprobs"),
        *("max_new_tokens", "max_tokens", "temperature", "top_p", "top_k", "ignore_eos", "stop_token_ids"),
    )
    return {name: fields.raw(name) for name in names if fields.has(name)}


def messages(value: Any) -> list[dict[str, Any]]:
    """Chat messages: contents of text parts are joined; parts of other kinds are refused."""
    if not isinstance(value, list) or not value:
        raise bad_field("messages", "messages must be a list of at least one message")
    return [_message(i, message) for i, message in enumerate(value)]


def _message(i: int, message: Any) -> dict[str, Any]:
    where = f"messages[{i}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad_field(where, f"{where} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content[{k}]", part) for k, part in enumerate(content))
    if content is None and (message.get("tool_calls") or message["role"] == "assistant"):
        content = ""
    if not isinstance(content, str):
        raise bad_field(f"{where}.content", f"{where} must have text as its content, not {shown(content)}")
    if (calls := message.get("tool_calls")) is not None and not isinstance(calls, list):
        raise bad_field(f"{where}.tool_calls", f"{where}.tool_calls must be a list")
    more = {} if calls is None else {"tool_calls": tool_calls.for_template(calls)}
    return {**message, "content": content, **more}


def _part(where: str, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
        kind = part["type"][:40]
        raise bad_field(
            where, f"{where} is of type {kind!r}; this model reads text only", "unsupported_value"
        )
    raise bad_field(where, f'{where} must be an object such as {{"type": "text", "text": "..."}}')


def _common(fields: Fields, kind: Kind, limits: HttpLimits) -> GenerationCall:
    call = GenerationCall(kind=kind, sampling=_sampling(fields, limits))
    call.n = fields.whole("n", 1)
    if call.n < 1:
        raise bad_field("n", f"n is {call.n}; it must be at least 1")
    call.stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None:
        if not call.stream:
            raise bad_field("stream_options", "stream_options needs stream to be true")
        call.include_usage = Fields(options).flag("include_usage")
    call.user = fields.text("user")
    call.priority = -_bounded_priority(fields)
    call.cache_salt = fields.text("cache_salt", "")
    if len(call.cache_salt) > 256:
        raise bad_field("cache_salt", f"cache_salt has {len(call.cache_salt)} characters; at most 256")
    call.keep = _keep(fields)
    call.timeout_s = fields.number("timeout")
    if call.timeout_s is not None and call.timeout_s <= 0:
        raise bad_field("timeout", f"timeout is {call.timeout_s}; it must be above 0 seconds")
    call.rid = fields.text("rid")
    if call.rid is not None and (not call.rid.isprintable() or not 0 < len(call.rid) <= 128):
        raise bad_field("rid", "rid must be 1 to 128 printable characters")
    call.skip_special = fields.flag("skip_special_tokens", True)
    return call


def _keep(fields: Fields) -> RequestKeep | None:
    if fields.raw("keep") is None:
        return None
    try:
        return RequestKeep.read(fields.object("keep"))
    except ValueError as why:
        raise bad_field("keep", str(why)) from None


def _bounded_priority(fields: Fields) -> int:
    value: int = fields.whole("priority", 0)
    if not -(2**20) <= value <= 2**20:
        raise bad_field("priority", f"priority is {value}; it must lie within 2**20 either way")
    return value


def _sampling(fields: Fields, limits: HttpLimits) -> dict[str, Any]:
    """The fields of `Sampling` that the body names; their ranges are checked by `Sampling` itself."""
    given: dict[str, Any] = {}
    for name in (
        *("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    ):
        if fields.has(name):
            given[name] = fields.number(name)
    for name in ("top_k", "min_tokens", "seed"):
        if fields.has(name):
            given[name] = fields.whole(name)
    if given.get("top_k") == 0:
        given["top_k"] = -1
    given["ignore_eos"] = fields.flag("ignore_eos")
    given["include_stop"] = fields.flag("include_stop_str_in_output")
    given["stop"] = _stops(fields.raw("stop"), limits)
    given["stop_ids"] = _ids(fields.items("stop_token_ids", []), "stop_token_ids")
    given["logit_bias"] = _bias(fields.raw("logit_bias"))
    return given


def _stops(value: Any, limits: HttpLimits) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise bad_field("stop", f"stop must be a text or a list of texts, not {shown(value)}", "invalid_type")
    stops = [s for s in stops if s]  # an empty text, as some clients send, stops nothing
    if len(stops) > limits.stops:
        raise bad_field("stop", f"stop has {len(stops)} texts; at most {limits.stops}")
    if any(len(s) > limits.stop_chars for s in stops):
        raise bad_field("stop", f"a stop text is longer than {limits.stop_chars} characters")
    return tuple(stops)


def _ids(value: list[Any], name: str) -> tuple[int, ...]:
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in value):
        raise bad_field(name, f"{name} must be token ids from 0 up", "invalid_type")
    return tuple(value)


def _bias(value: Any) -> dict[int, float]:
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise bad_field("logit_bias", f"logit_bias must be an object of token ids, not {shown(value)}")
    if len(value) > 1024:
        raise bad_field("logit_bias", f"logit_bias names {len(value)} tokens; at most 1024")
    bias = {}
    for id, amount in value.items():
        if not (id.isascii() and id.isdigit() and len(id) < 10):
            raise bad_field("logit_bias", f"logit_bias has the key {shown(id)}; keys are token ids")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not -100 <= amount <= 100:
            raise bad_field("logit_bias", f"logit_bias[{id}] must be a number from -100 to 100")
        bias[int(id)] = float(amount)
    return bias


def _top(fields: Fields, name: str) -> int | None:
    if isinstance(fields.raw(name), bool):
        return 0 if fields.raw(name) else None
    top: int | None = fields.whole(name)
    if top is not None and not 0 <= top <= MAX_TOP:
        raise bad_field(name, f"{name} is {top}; it must lie in 0..{MAX_TOP}")
    return top


def _prompts(value: Any, most: int, name: str = "prompt") -> list[str | list[int]]:
    """The four shapes of a prompt as a list of prompts."""
    kinds = f"{name} must be a text, a list of texts, token ids, or a list of lists of token ids"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise bad_field(name, kinds if value is not None else f"{name} is missing", "invalid_type")
    if not value:
        raise bad_field(name, f"{name} is empty")
    if all(isinstance(p, str) for p in value) or all(isinstance(p, list) for p in value):
        if len(value) > most:
            raise bad_field(name, f"{name} holds {len(value)} prompts; at most {most}")
        for p in value:
            if not isinstance(p, str):
                _ids(p, name)
        return list(value)
    _ids(value, name)
    return [list(value)]


def _refuse_unsupported(fields: Fields) -> None:
    for name in UNSUPPORTED:
        value = fields.raw(name)
        if value not in (None, "", [], "none") and not (name == "modalities" and value == ["text"]):
            raise bad_field(name, f"{name} is not supported", "unsupported_parameter")
    for name in HARMLESS:
        fields.has(name)


def _check_sizes(call: GenerationCall, limits: HttpLimits) -> None:
    if call.outputs > limits.outputs:
        prompts = max(1, len(call.prompts))
        raise bad_field(
            "n", f"{prompts} prompts times n={call.n} is {call.outputs}; at most {limits.outputs}"
        )
    if call.max_tokens is not None and call.max_tokens < (0 if call.echo else 1):
        least = "at least 1, or 0 with echo" if call.kind == "completion" else "at least 1"
        raise bad_field("max_tokens", f"max_tokens is {call.max_tokens}; it must be {least}")


def sampling_of(call: GenerationCall, max_tokens: int, defaults: Mapping[str, Any]) -> Sampling:
    """The call's `Sampling`.

    Raises:
      ApiError: 400: a value is out of range; the field is named as the client knows it.
    """
    given = {"temperature": 1.0, **defaults, **call.sampling, "n": call.n, "max_tokens": max_tokens}
    if call.logprobs is not None:
        given["logprobs"] = call.logprobs
    try:
        return Sampling(**given)
    except ValueError as why:
        message = str(why).removeprefix("sampling.")
        raise ApiError(400, message, param=message.split(" ")[0], code="invalid_value") from None
