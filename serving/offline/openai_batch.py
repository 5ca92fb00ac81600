"""Lines of OpenAI's batch format, as fields of a request line.

    {"custom_id": "a1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}

`body.model` is not compared with the model served. Answers keep our format, under `custom_id` as their id,
and carry `metadata`. Fields that vLLM adds to OpenAI's are understood too.
"""

from collections.abc import Mapping
from typing import Any

URLS = ("/v1/chat/completions", "/v1/completions")
_LINE = {"custom_id", "method", "url", "body"}
_SAME = {
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "metadata",
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "prompt_logprobs", "priority"),
    "cache_salt",
    "keep",
}
_RENAMED = {"max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "user": "client"}
_RENAMED |= {"stop_token_ids": "stop_ids", "include_stop_str_in_output": "include_stop"}
_IGNORED = {"model", "store"}
_LOGPROBS = {"logprobs", "top_logprobs"}


def is_batch_line(fields: Mapping[str, Any]) -> bool:
    return "custom_id" in fields or "body" in fields


def request_fields(line: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request line that asks for the same.

    Raises:
      ValueError: a missing or unknown field, another method or endpoint, or a feature that is not served.
    """
    if unknown := sorted(line.keys() - _LINE):
        raise ValueError(f"has unknown fields {', '.join(unknown)}")
    if missing := sorted({"custom_id", "body"} - line.keys()):
        raise ValueError(f"is a batch line without {missing[0]}")
    if line.get("method", "POST") != "POST" or line.get("url", URLS[0]) not in URLS:
        raise ValueError(
            f"asks for {line.get('method', 'POST')} {line.get('url')!r}; known are POST {' and '.join(URLS)}"
        )
    if not isinstance(line["body"], dict):
        raise ValueError(f"body must be an object, not a {type(line['body']).__name__}")
    body = {name: value for name, value in line["body"].items() if value is not None and name not in _IGNORED}
    if body.pop("stream", False):
        raise ValueError("body.stream is on; answers are whole lines")
    if unknown := sorted(body.keys() - _SAME - _RENAMED.keys() - _LOGPROBS):
        raise ValueError(f"body has fields that are not served: {', '.join(unknown)}")
    fields = {name: value for name, value in body.items() if name in _SAME}
    fields |= {_RENAMED[name]: value for name, value in body.items() if name in _RENAMED}
    return fields | _logprobs(body) | {"id": line["custom_id"]}


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    """Chat says `logprobs: true, top_logprobs: k`, completions say `logprobs: k`."""
    wanted = body.get("logprobs", False)
    if wanted is True:
        return {"logprobs": body.get("top_logprobs", 0)}
    if wanted is False:
        if "top_logprobs" in body:
            raise ValueError("body.top_logprobs needs body.logprobs")
        return {}
    return {"logprobs": wanted}
