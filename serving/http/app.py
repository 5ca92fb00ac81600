"""The routes."""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http import answers, reading, wire
from serving.http.body import Fields
from serving.http.clients import HttpCaller, header_name
from serving.http.credentials import secret_of
from serving.http.errors import ApiError, bad_field
from serving.http.responses import StreamAnswer, error_response, whole_answer
from serving.http.service import OpenCall, Service
from serving.http.wire import GenerationCall

_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Routes:
    """The generating routes, and those about the model."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, wire.completion)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, wire.chat)

    async def generate(self, request: Request) -> Response:
        return await self._generate(request, wire.ids)

    async def _generate(self, request: Request, read: Any) -> Response:
        service = self.service
        model = service.ready_model()
        caller = self._caller(request)
        fields = await reading.fields(request, service.limits)
        self._check_model(fields, model.name)
        call: GenerationCall = read(fields, service.limits)
        service.note_unknown(fields.unknown)
        opened = await service.open(call, caller)
        if call.stream:
            return StreamAnswer(service, opened)
        return await whole_answer(request, service, opened, self._shape(opened))

    def _shape(self, opened: OpenCall) -> Any:
        if opened.call.kind != "ids":
            return opened.shape.whole
        one = len(opened.active.requests) * opened.call.n == 1

        def shape(outputs: Any) -> Any:
            made = answers.ids_answer(outputs, opened.call.rid or opened.shape.id)
            return made[0] if one else made

        return shape

    def _caller(self, request: Request) -> HttpCaller:
        key = self.service.key_of(secret_of(request.headers))
        header = next((v for n, v in request.scope["headers"] if n == b"x-client-id"), None)
        return HttpCaller(key, header_name(header), request.client.host if request.client else "local")

    def _check_model(self, fields: Fields, name: str) -> None:
        asked = fields.text("model")
        if asked is not None and asked != name:
            message = f"the model {asked[:100]!r} is not served here; {name!r} is"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def models(self, request: Request) -> Response:
        self.service.key_of(secret_of(request.headers))
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self.service.key_of(secret_of(request.headers))
        card = self._card()
        if request.path_params["id"] != card["id"]:
            message = f"the model {request.path_params['id'][:100]!r} is not served here; {card['id']!r} is"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(card)

    def _card(self) -> dict[str, Any]:
        model = self.service.ready_model()
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "mixattn",
            "max_model_len": model.max_tok,
        }

    async def tokenize(self, request: Request) -> Response:
        service = self.service
        model = service.ready_model()
        service.key_of(secret_of(request.headers))
        fields = await reading.fields(request, service.limits)
        self._check_model(fields, model.name)
        if fields.has("messages"):
            text = await model.prompts.template.render(
                wire.messages(fields.raw("messages")),
                add_generation_prompt=fields.flag("add_generation_prompt", True),
            )
            special = fields.flag("add_special_tokens", False)
        else:
            text, special = fields.text("prompt"), fields.flag("add_special_tokens", True)
            if text is None:
                raise bad_field("prompt", "prompt is missing")
        ids = await model.prompts.encode(text, special)
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": model.max_tok, "tokens": ids}
        answer["token_strs"] = None
        if fields.flag("return_token_strs"):
            tokenizer = model.prompts.tokenizer
            answer["token_strs"] = [tokenizer.id_to_token(id) for id in ids]
        return JSONResponse(answer)

    async def detokenize(self, request: Request) -> Response:
        service = self.service
        model = service.ready_model()
        service.key_of(secret_of(request.headers))
        fields = await reading.fields(request, service.limits)
        self._check_model(fields, model.name)
        ids = wire._ids(fields.items("tokens", []), "tokens")
        if model.prompts.tokenizer is None:
            raise bad_field("tokens", "the model has no tokenizer", "unsupported_value")
        if any(id >= model.vocab for id in ids):
            raise bad_field("tokens", f"tokens name ids beyond the vocabulary of {model.vocab}")
        return JSONResponse({"prompt": model.prompts.tokenizer.decode(list(ids), skip_special_tokens=False)})

    async def tokenizer_info(self, request: Request) -> Response:
        """What lm-eval reads: special tokens by name."""
        model = self.service.ready_model()
        self.service.key_of(secret_of(request.headers))
        if model.prompts.tokenizer is None or model.texts is None:
            raise ApiError(404, "the model has no tokenizer", code="no_tokenizer")
        ends = [model.texts.text_of(id) for id in model.eos_ids]
        named = {n: v for n, v in model.settings.items() if n.endswith("_token") and isinstance(v, str)}
        if ends:
            named.setdefault("eos_token", ends[0])
        kind = model.settings.get("tokenizer_class") or "PreTrainedTokenizerFast"
        info: dict[str, Any] = {"tokenizer_class": kind, **named}
        info |= {"model_max_length": model.max_tok, "vocab_size": model.vocab}
        info["chat_template"] = model.prompts.template.source
        return JSONResponse(info)


class RequestFrame:
    """Around every request: its id in and out, and refusals counted.

    Args:
      hosts: names by which the server may be addressed; None = any. A page of another site could otherwise
        reach a server on loopback by a name of its own that points here.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: frozenset[str] | None) -> None:
        self._app, self._service, self._hosts = app, service, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", id.encode())]}
            await send(message)

        if (error := self._stranger(headers)) is not None:
            await error_response(error)(scope, receive, told)
        else:
            await self._app(scope, receive, told)
        if status >= 400:
            self._service.metrics.reject(status)

    def _stranger(self, headers: Mapping[bytes, bytes]) -> ApiError | None:
        """Why a request is not meant for this server: another site's name, or another site's page."""
        if not self._known_host(headers.get(b"host", b"")):
            return ApiError(421, "this server is not addressed by that name", code="misdirected_request")
        origin = headers.get(b"origin")
        if origin is not None and not self._known_host(origin.partition(b"://")[2] or b"null"):
            message = "pages of other sites may not call this server; put it behind a proxy with keys"
            return ApiError(403, message, code="foreign_origin")
        return None

    def _known_host(self, value: bytes) -> bool:
        name = value.decode("latin-1").lower()
        bare = name.rpartition(":")[0] if re.search(r":\d*$", name) else name
        return self._hosts is None or bare in self._hosts or not name


def build(service: Service, others: Sequence[Route], hosts: frozenset[str] | None) -> ASGIApp:
    """The application; `others`: routes beside those of the protocol."""
    routes = Routes(service)
    app = Starlette(
        routes=[
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/generate", routes.generate, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{id:path}", routes.model, methods=["GET"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/tokenizer_info", routes.tokenizer_info, methods=["GET"]),
            *others,
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_framework_error,
            Exception: _on_bug,
        },
    )
    return RequestFrame(app, service, hosts)


async def _on_api_error(request: Request, error: Any) -> Response:
    return error_response(error)


async def _on_framework_error(request: Request, error: Any) -> Response:
    words = {404: f"there is no route {request.url.path[:200]}", 405: f"{request.method} is not allowed here"}
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    made = ApiError(error.status_code, words.get(error.status_code, str(error.detail)), code=code)
    response = error_response(made)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _on_bug(request: Request, error: Exception) -> Response:
    logging.error("a request to %s raised", request.url.path, exc_info=error)
    return error_response(ApiError(500, "the server failed on this request", code="internal_error"))
