"""/openapi.json: the routes and their fields, for people who generate clients and for fuzzers."""

from typing import Any

from serving.http.settings import MAX_NAME, HttpLimits
from serving.http.wire import MAX_TOP


def _number(low: float, high: float, exclusive: bool = False) -> dict[str, Any]:
    return {"type": "number", "exclusiveMinimum" if exclusive else "minimum": low, "maximum": high}


def _whole(low: int, high: int | None = None) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, **({} if high is None else {"maximum": high})}


IDS = {"type": "array", "items": _whole(0), "minItems": 1}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}


def _common(limits: HttpLimits) -> dict[str, Any]:
    stop = {"type": "string", "maxLength": limits.stop_chars}
    return {
        "model": TEXT,
        "n": _whole(1, 128),
        "temperature": _number(0, 1e30),
        "top_p": _number(0, 1, exclusive=True),
        "top_k": _whole(-1),
        "min_p": _number(0, 1),
        "repetition_penalty": _number(0, 2, exclusive=True),
        "frequency_penalty": _number(-2, 2),
        "presence_penalty": _number(-2, 2),
        "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
        "seed": {"type": "integer"},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": limits.stops}]},
        "stop_token_ids": {"type": "array", "items": _whole(0), "maxItems": 8},
        "min_tokens": _whole(0),
        "ignore_eos": FLAG,
        "include_stop_str_in_output": FLAG,
        "skip_special_tokens": FLAG,
        "stream": FLAG,
        "stream_options": {"type": "object", "properties": {"include_usage": FLAG}},
        "user": {"type": "string", "maxLength": MAX_NAME},
        "priority": {"type": "integer", "description": "smaller goes first, within one client"},
        "cache_salt": {"type": "string", "maxLength": 256},
        "keep": {
            "type": "object",
            "description": "how the request's keys are cut, where the server evicts",
            "properties": {"scorer": TEXT, "budget": _number(0, 2**31, exclusive=True), "everything": FLAG},
            "additionalProperties": False,
        },
        "timeout": _number(0, limits.request_s, exclusive=True),
        "rid": {"type": "string", "minLength": 1, "maxLength": 128},
        "response_format": {"type": "object", "required": ["type"]},
        "guided_json": {"type": "object"},
        "guided_regex": TEXT,
        "guided_choice": {"type": "array", "items": TEXT, "minItems": 1},
        "guided_grammar": TEXT,
    }


def document(limits: HttpLimits, model: str) -> dict[str, Any]:
    """The document; `model` is the served model's name."""
    completion = {
        **_common(limits),
        "prompt": {
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT, "minItems": 1},
                IDS,
                {"type": "array", "items": IDS, "minItems": 1},
            ]
        },
        "max_tokens": _whole(0),
        "echo": FLAG,
        "logprobs": _whole(0, MAX_TOP),
        "add_special_tokens": FLAG,
    }
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": TEXT, "content": {"anyOf": [TEXT, {"type": "array"}]}},
    }
    chat = {
        **_common(limits),
        "messages": {"type": "array", "items": message, "minItems": 1},
        "max_tokens": _whole(1),
        "max_completion_tokens": _whole(1),
        "logprobs": FLAG,
        "top_logprobs": _whole(0, MAX_TOP),
        "tools": {"type": "array", "items": {"type": "object"}},
        "tool_choice": {},
        "chat_template_kwargs": {"type": "object"},
    }
    generate = {"input_ids": IDS, "sampling_params": {"type": "object"}, "stream": FLAG, "rid": TEXT}
    paths = {
        "/v1/completions": _post("Continue a prompt.", completion, ["prompt"]),
        "/v1/chat/completions": _post("Answer a conversation.", chat, ["messages"]),
        "/generate": _post("Token ids in, token ids out.", generate, ["input_ids"]),
        "/tokenize": _post("Text to token ids.", {"prompt": TEXT, "add_special_tokens": FLAG}, ["prompt"]),
        "/detokenize": _post("Token ids to text.", {"tokens": IDS}, ["tokens"]),
        "/abort_request": _post("End a request by its rid.", {"rid": TEXT}, ["rid"]),
        "/flush_cache": _post("Forget cached prefixes; 400 while requests run.", {}, []),
    }
    for path, summary in _GETS.items():
        paths[path] = {"get": {"summary": summary, "responses": _responses()}}
    paths["/v1/models/{id}"] = {
        "get": {
            "summary": "One model.",
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": TEXT}],
            "responses": _responses(),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"mixattn serving {model}", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_GETS = {
    "/v1/models": "The served model.",
    "/health": "200 while the server makes progress.",
    "/ready": "200 once everything is compiled, until it drains.",
    "/health_generate": "One token, end to end.",
    "/metrics": "Prometheus metrics.",
    "/tokenizer_info": "Special tokens and the chat template.",
    "/get_server_info": "Configuration and counters.",
    "/dashboard": "A page for people.",
    "/openapi.json": "This document.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": TEXT,
            },
        }
    },
}


def _responses() -> dict[str, Any]:
    refused = {"schema": {"$ref": "#/components/schemas/Error"}}
    return {
        "200": {"description": "The answer."},
        "default": {"description": "A refusal.", "content": {"application/json": refused}},
    }


def _post(summary: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    content = {"application/json": {"schema": schema}}
    body = {"requestBody": {"required": True, "content": content}} if properties else {}
    return {"post": {"summary": summary, **body, "responses": _responses()}}
