"""Calls from the event loop to the engine and back: admission, submission, delivery, clean-up."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from absl import logging

from serving.http.admission import CHARS_PER_TOK, Admission, Ticket
from serving.http.answers import AnswerShape
from serving.http.backend import Backend, Deliver, StepReport
from serving.http.calls import ActiveCall
from serving.http.clients import HttpCaller
from serving.http.errors import ApiError, bad_field
from serving.http.grammar import GrammarCompiler, MakeGrammar
from serving.http.keys import ApiKey, KeyRing
from serving.http.loop import EngineLoop
from serving.http.metrics import ServerMetrics
from serving.http.prompts import PromptReader
from serving.http.settings import HttpLimits
from serving.http.token_text import TokenTexts
from serving.http.wire import GenerationCall, sampling_of
from serving.request import Output, Request, RequestId


@dataclass
class ServedModel:
    """What the server serves, once it is loaded.

    Attributes:
      defaults: sampling of the checkpoint's generation_config.json.
      texts: bytes of single tokens; None without a tokenizer.
      eos_ids: that end a text.
      grammars: compiles structured output; None without a tokenizer.
    """

    name: str
    max_tok: int
    vocab: int
    prompts: PromptReader
    texts: TokenTexts | None
    defaults: Mapping[str, Any]
    settings: Mapping[str, Any]
    eos_ids: Sequence[int]
    grammars: GrammarCompiler | None = None
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(eq=False)
class OpenCall:
    """A call on its way: its parts in the engine, its answer's shape, its ticket."""

    active: ActiveCall
    shape: AnswerShape
    ticket: Ticket
    call: GenerationCall
    client: str
    outputs: list[Output] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    closed: bool = False

    @property
    def sorted_outputs(self) -> list[Output]:
        place = self.active.place
        return sorted(self.outputs, key=lambda o: (place[o.id], o.index))


class Service:
    """The server without its sockets.

    Args:
      loop: makes what computes; it is told where its reports go.

    Attributes:
      model: None until it is loaded and compiled.
      draining: no new calls are taken.
    """

    def __init__(
        self,
        limits: HttpLimits,
        metrics: ServerMetrics,
        keys: KeyRing | None,
        loop: Callable[[Deliver], Backend] = EngineLoop,
    ) -> None:
        self.limits, self.metrics, self.keys = limits, metrics, keys
        self.admission = Admission(limits)
        self.loop: Backend = loop(self._deliver)
        self.taps: list[Deliver] = []  # hear every report first
        self.model: ServedModel | None = None
        self.draining = False
        self.calls: dict[RequestId, OpenCall] = {}
        self.rids: dict[str, OpenCall] = {}  # by the id that the client chose
        self.writing: set[OpenCall] = set()  # streams that have begun
        self.opening = 0  # calls that are admitted and not submitted yet
        self._told: set[str] = set()  # unknown fields that were logged

    # ---- state ----

    def ready_model(self) -> ServedModel:
        """Raises ApiError (503) while the server starts, drains, or cannot serve."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after_s=10)
        if self.loop.failed:
            message = f"the server is out of order: {self.loop.failed}"
            raise ApiError(503, message, code=self.loop.failed_code, retry_after_s=self.loop.retry_s)
        if self.model is None:
            raise ApiError(503, "the model is still loading", code="starting", retry_after_s=5)
        return self.model

    @property
    def busy(self) -> bool:
        """Whether a call is on its way or an answer is being written."""
        return bool(self.calls or self.opening or self.writing)

    @property
    def open_calls(self) -> int:
        """Calls that are admitted and not over: in the engine, or being tokenised or compiled for it."""
        return self.opening + len({id(call) for call in self.calls.values()})

    @property
    def unhealthy(self) -> str | None:
        """Why the server makes no progress, or None."""
        stuck_s = self.loop.stuck_s()
        if stuck_s > self.limits.watchdog_s:
            return f"a step has taken {stuck_s:.0f} s"
        return self.loop.failed

    def key_of(self, secret: str | None) -> ApiKey | None:
        """The key a caller showed; None where keys are off.

        Raises:
          ApiError: 401: it is missing or unknown.
        """
        if self.keys is None:
            return None
        if secret is None:
            raise ApiError(401, "an API key is missing: Authorization: Bearer KEY", code="invalid_api_key")
        key = self.keys.find(secret)
        if key is None:
            raise ApiError(401, "the API key is not known", code="invalid_api_key")
        return key

    def note_unknown(self, names: Sequence[str]) -> None:
        """Logs each unknown field once."""
        for name in names:
            if name not in self._told and len(self._told) < 1000:
                self._told.add(name)
                logging.warning("ignored the unknown field %r of a request", name[:100])

    # ---- a call ----

    async def open(self, call: GenerationCall, caller: HttpCaller) -> OpenCall:
        """Admits, tokenises and submits a call.

        Raises:
          ApiError: it is refused; nothing is left behind then.
        """
        model = self.ready_model()
        client = caller.client(call.user)
        if call.logprobs is not None and model.texts is None and call.kind != "ids":
            raise bad_field(
                "logprobs", "logprobs need a tokenizer, and the model has none", "unsupported_value"
            )
        if call.priority and caller.key is not None and not caller.key.priority:
            raise ApiError(403, "this key may not name a priority", param="priority", code="forbidden")
        if call.rid is not None and (call.rid in self.rids):
            raise bad_field("rid", f"rid {call.rid!r} is in use by a live request")
        guess = call.guessed_chars // CHARS_PER_TOK + 1
        ticket = self.admission.take(caller.key, call.outputs, guess * call.n, call.max_tokens or 1)
        self.opening += 1
        try:
            ids, texts = await model.prompts.read(call)
            make = await self._grammar(call, model)
            requests = [self._request(call, caller, client, model, prompt, make) for prompt in ids]
            for request in requests:
                self._check(request, call)
            if call.rid is not None and call.rid in self.rids:
                raise bad_field("rid", f"rid {call.rid!r} is in use by a live request")
        except BaseException:
            self.admission.settle(ticket, 0)
            raise
        finally:
            self.opening -= 1
        shape = AnswerShape(call, model.name, model.texts, ids, texts, call.tools and call.tools.reader)
        opened = OpenCall(ActiveCall(requests, caller.share, stream=call.stream), shape, ticket, call, client)
        for request in requests:
            self.calls[request.id] = opened
            ticket.waiting.update(request.names)
        if call.rid is not None:
            self.rids[call.rid] = opened
        self.loop.submit(requests)
        return opened

    def _request(
        self,
        call: GenerationCall,
        caller: HttpCaller,
        client: str,
        model: ServedModel,
        ids: list[int],
        grammar: MakeGrammar | None,
    ) -> Request:
        room = model.max_tok - len(ids)
        max_tokens = 1 if call.score_only else room if call.max_tokens is None else call.max_tokens
        if max_tokens > room or room < 1:
            asked = "no room for an answer" if call.max_tokens is None else f"{max_tokens} of output"
            message = f"the prompt has {len(ids)} tokens and {asked}; the longest request is {model.max_tok}"
            raise ApiError(400, message, param="max_tokens", code="context_length_exceeded")
        timeout_s = min(call.timeout_s or self.limits.request_s, self.limits.request_s)
        return Request(
            client=client,
            prompt_ids=ids,
            sampling=sampling_of(call, max_tokens, model.defaults),
            id=uuid.uuid4().hex,
            cache_salt=caller.salt(call.cache_salt),
            deadline_s=timeout_s,
            priority=call.priority,
            grammar=grammar,
            keep=call.keep,
        )

    async def _grammar(self, call: GenerationCall, model: ServedModel) -> MakeGrammar | None:
        if call.grammar is None:
            return None
        if model.grammars is None:
            message = f"{call.grammar.field} needs a tokenizer and the package llguidance (extra serve)"
            raise bad_field(call.grammar.field, message, "unsupported_parameter")
        return await asyncio.to_thread(model.grammars.compile, call.grammar)

    def _check(self, request: Request, call: GenerationCall) -> None:
        try:
            self.loop.check(request)
        except ValueError as why:
            message = str(why).replace(f"request {request.id!r}", "the request")
            raise ApiError(400, message, code="invalid_value") from None

    def close(self, opened: OpenCall) -> None:
        """Ends a call from our side: what still runs of it is cancelled. May be called twice."""
        if not opened.closed:
            opened.closed = True
            self.abort(opened)

    def abort(self, opened: OpenCall) -> None:
        """Cancels a call for the client; its reader is told by the outputs that end."""
        live = [id for id in opened.active.ids if id in self.calls]
        if live and opened.active.open:
            self.loop.cancel(live)

    def fail_everything(self, error: ApiError) -> None:
        """Ends all calls with an error."""
        for opened in list({id(o): o for o in self.calls.values()}.values()):
            opened.active.fail(error)
            self.close(opened)

    # ---- reports of the engine ----

    def _deliver(self, report: StepReport) -> None:
        for tap in self.taps:
            tap(report)
        for name, _, _ in report.admitted:
            opened = self.calls.get(name.partition("#")[0])
            if opened is not None:
                self.admission.started(opened.ticket, name)
        for id, why in report.refused:
            self._refused(id, why)
        for delta in report.deltas:
            opened = self.calls.get(delta.id)
            self.metrics.delta(delta, report.at_s, None if opened is None else opened.began_s)
            if opened is None:
                continue
            opened.active.push(delta)
            if delta.output is not None:
                self._ended(opened, delta.output)

    def _ended(self, opened: OpenCall, output: Output) -> None:
        name = output.id if output.index == 0 else f"{output.id}#{output.index}"
        self.admission.ended(opened.ticket, name)
        opened.outputs.append(output)
        if not opened.active.open:
            for id in opened.active.ids:
                self.calls.pop(id, None)
            if opened.call.rid is not None and self.rids.get(opened.call.rid) is opened:
                del self.rids[opened.call.rid]
            self._settle(opened)

    def _refused(self, id: RequestId, why: str) -> None:
        """The engine did not take a request that `check` let pass."""
        opened = self.calls.get(id)
        if opened is None:
            return
        for other in opened.active.ids:
            self.calls.pop(other, None)
        if opened.call.rid is not None:
            self.rids.pop(opened.call.rid, None)
        opened.active.open = 0
        opened.active.fail(ApiError(400, why, code="invalid_value"))
        self.admission.settle(opened.ticket, 0)

    def _settle(self, opened: OpenCall) -> None:
        outputs = opened.sorted_outputs
        ran = [o for o in outputs if o.admit_s >= 0]
        firsts = {o.id: o for o in reversed(ran)}.values()  # each prompt that ran, once
        prompt_tok, hit_tok = sum(o.prompt_tok for o in firsts), sum(o.hit_tok for o in firsts)
        produced = sum(len(o.output_ids) for o in outputs)
        output_tok, scored = (0, produced) if opened.call.score_only else (produced, 0)
        self.metrics.used(opened.client, prompt_tok, hit_tok, output_tok, scored)
        self.admission.settle(opened.ticket, prompt_tok + output_tok)
