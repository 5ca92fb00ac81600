"""Answers in OpenAI's shapes: whole ones, and the chunks of a stream."""

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from serving.http.errors import ApiError
from serving.http.token_text import OffsetWalk, TokenTexts
from serving.http.wire import GenerationCall
from serving.request import Delta, FinishReason, Logprob, Output

OBJECTS = {
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
}
NEVER = -9999.0  # the log-probability of a token that a grammar or a minimum length forbids
PREFIXES = {"completion": "cmpl", "chat": "chatcmpl", "ids": "gen"}


def reason(why: FinishReason, produced_tok: int) -> str:
    """The reason in OpenAI's words.

    Raises:
      ApiError: it ended without an answer.
    """
    if why in ("stop", "length"):
        return why
    if why == "deadline" and produced_tok:
        return "length"
    if why == "deadline":
        raise ApiError(504, "the request's time ran out before its first token", code="timeout")
    if why == "refused":
        raise ApiError(
            429,
            "the scheduling policy refuses this client for now",
            code="rate_limit_exceeded",
            retry_after_s=1,
        )
    if why == "cancel":
        raise ApiError(409, "the request was aborted", code="aborted")
    if why == "lost":
        raise ApiError(
            503,
            "every worker that was given this request was lost; it may be sent again",
            code="workers_lost",
            retry_after_s=5,
        )
    raise ApiError(500, "the engine failed while it served this request", code="engine_error")


def usage(outputs: Sequence[Output], prompts: int, score_only: bool = False) -> dict[str, Any]:
    """Token counts; each prompt once, whatever `n` is.

    Args:
      outputs: sorted by prompt, then index.
    """
    per_prompt = max(1, len(outputs) // max(1, prompts))
    firsts = outputs[::per_prompt]
    prompt_tok = sum(o.prompt_tok for o in firsts)
    output_tok = 0 if score_only else sum(len(o.output_ids) for o in outputs)
    return {
        "prompt_tokens": prompt_tok,
        "completion_tokens": output_tok,
        "total_tokens": prompt_tok + output_tok,
        "prompt_tokens_details": {"cached_tokens": sum(o.hit_tok for o in firsts)},
    }


def told_value(logprob: float) -> float:
    """A log-probability as JSON can say it: what is forbidden has the value OpenAI gives it."""
    return logprob if math.isfinite(logprob) else NEVER


class AnswerShape:
    """Builds the answer of one call.

    Args:
      texts: None where the model has no tokenizer.
      prompt_ids: of each prompt.
      tool_reader: turns a chat's whole text into tool calls; None = plain text.
    """

    def __init__(
        self,
        call: GenerationCall,
        model: str,
        texts: TokenTexts | None,
        prompt_ids: Sequence[Sequence[int]],
        prompt_texts: Sequence[str],
        tool_reader: Any = None,
    ) -> None:
        self.call, self._texts, self._prompt_ids, self._prompt_texts = call, texts, prompt_ids, prompt_texts
        self._tool_reader = tool_reader
        self.id = f"{PREFIXES[call.kind]}-{uuid.uuid4().hex}"
        self._head = {
            "id": self.id,
            "object": OBJECTS.get((call.kind, call.stream), "ids"),
            "created": int(time.time()),
            "model": model,
        }
        self._prefix = json.dumps(self._head)[:-1]
        self._walks: dict[int, OffsetWalk] = {}  # per choice of a stream

    # ---- whole answers ----

    def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """Args: outputs sorted by prompt, then index."""
        choices = [self._choice(i, output) for i, output in enumerate(outputs)]
        counts = usage(outputs, len(self._prompt_ids), self.call.score_only)
        return {**self._head, "choices": choices, "usage": counts}

    def _choice(self, i: int, output: Output) -> dict[str, Any]:
        why = reason(output.finish_reason, len(output.output_ids))
        place = i // self.call.n
        if self.call.kind == "chat":
            message, why = self._message(output.text, why)
            logprobs = self._chat_logprobs(output.logprobs) if self.call.logprobs is not None else None
            return {"index": i, "message": message, "logprobs": logprobs, "finish_reason": why}
        text, told = ("", ()) if self.call.score_only else (output.text, output.logprobs)
        if self.call.echo:
            text = self._prompt_texts[place] + text
        logprobs = None
        if self.call.logprobs is not None:
            base = len(self._prompt_texts[place]) if self.call.echo else 0
            assert self._texts is not None
            logprobs = self._lists(told, OffsetWalk(self._texts, base=base))
            if self.call.echo:
                prompt = self._echoed(place, output.prompt_logprobs)
                logprobs = {name: prompt[name] + logprobs[name] for name in logprobs}
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": why}

    def _message(self, text: str, why: str) -> tuple[dict[str, Any], str]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._tool_reader is not None:
            content, calls = self._tool_reader(text)
            if calls:
                message |= {"content": content or None, "tool_calls": calls}
                why = "tool_calls" if why == "stop" else why
        return message, why

    # ---- log-probabilities ----

    def _echoed(self, place: int, prompt: Sequence[Logprob]) -> dict[str, list[Any]]:
        """The prompt's tokens; nothing is known of the first."""
        assert self._texts is not None
        walk = OffsetWalk(self._texts, self._prompt_texts[place])
        lists = self._lists([Logprob(self._prompt_ids[place][0], 0.0), *prompt], walk)
        lists["token_logprobs"][0] = lists["top_logprobs"][0] = None
        return lists

    def _lists(self, told: Sequence[Logprob], walk: OffsetWalk) -> dict[str, list[Any]]:
        """The four lists of a completion's logprobs."""
        texts = self._texts
        assert texts is not None
        tokens, values, tops, offsets = [], [], [], []
        for lp in told:
            text = texts.text_of(lp.id)
            top: dict[str, float] = {}
            for id, value in lp.top:  # best first: where two ids print alike the better one stays
                top.setdefault(texts.text_of(id), told_value(value))
            if self.call.logprobs:
                top.setdefault(text, told_value(lp.logprob))
            tokens.append(text)
            values.append(told_value(lp.logprob))
            tops.append(top)
            offsets.append(walk.step(lp.id))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _chat_logprobs(self, told: Sequence[Logprob]) -> dict[str, Any]:
        return {"content": [self._chat_token(lp) for lp in told], "refusal": None}

    def _chat_token(self, lp: Logprob) -> dict[str, Any]:
        top = [self._token(id, value) for id, value in lp.top]
        return {**self._token(lp.id, lp.logprob), "top_logprobs": top}

    def _token(self, id: int, value: float) -> dict[str, Any]:
        assert self._texts is not None
        return {
            "token": self._texts.text_of(id),
            "logprob": told_value(value),
            "bytes": list(self._texts.bytes_of(id)),
        }

    # ---- streams ----

    def opening(self) -> list[bytes]:
        """Chunks before the first token: roles of a chat, prompts of an echo."""
        if self.call.kind == "chat":
            delta = {"role": "assistant", "content": ""}
            return [self.event(self._chunk(i, delta=delta)) for i in range(self.call.n)]
        if self.call.echo and self.call.logprobs is None:
            n = self.call.n
            count = len(self._prompt_texts) * n
            return [self.event(self._chunk(i, text=self._prompt_texts[i // n])) for i in range(count)]
        return []

    def chunks(self, place: int, delta: Delta) -> list[bytes]:
        """The events of one delta.

        Raises:
          ApiError: the output ended without an answer.
        """
        i, output = place * self.call.n + delta.index, delta.output
        why = None if output is None else reason(output.finish_reason, len(output.output_ids))
        if self.call.kind == "chat":
            return self._chat_chunks(i, delta, why)
        if self.call.echo and self.call.logprobs is not None:
            return [self.event(self._wrapped(self._choice(i, output)))] if output else []
        text, told = ("", ()) if self.call.score_only else (delta.text, delta.logprobs)
        logprobs = None
        if self.call.logprobs is not None and told:
            assert self._texts is not None
            walk = self._walks.setdefault(i, OffsetWalk(self._texts))
            logprobs = self._lists(told, walk)
        if not text and logprobs is None and why is None:
            return []
        if logprobs is None:
            return [self._quick(i, f'"text":{json.dumps(text)}', why)]
        return [self.event(self._chunk(i, text=text, logprobs=logprobs, finish_reason=why))]

    def _chat_chunks(self, i: int, delta: Delta, why: str | None) -> list[bytes]:
        made = []
        told = delta.logprobs if self.call.logprobs is not None else ()
        if told:
            chunk = self._chunk(i, delta={"content": delta.text}, logprobs=self._chat_logprobs(told))
            made.append(self.event(chunk))
        elif delta.text:
            made.append(self._quick(i, f'"delta":{{"content":{json.dumps(delta.text)}}}', None))
        if why is not None:
            made.append(self._quick(i, '"delta":{}', why))
        return made

    def tool_chunks(self, i: int, output: Output) -> list[bytes]:
        """The events of a whole output that may hold tool calls."""
        why = reason(output.finish_reason, len(output.output_ids))
        message, why = self._message(output.text, why)
        delta: dict[str, Any] = {"content": message["content"]} if message["content"] else {}
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [{"index": k, **call} for k, call in enumerate(calls)]
        made = [self.event(self._chunk(i, delta=delta))] if delta else []
        return [*made, self.event(self._chunk(i, delta={}, finish_reason=why))]

    def ending(self, outputs: Sequence[Output]) -> list[bytes]:
        """The last events: usage where it was asked for, then the mark of the end."""
        done = [b"data: [DONE]\n\n"]
        if not self.call.include_usage:
            return done
        counts = usage(outputs, len(self._prompt_ids), self.call.score_only)
        return [self.event({**self._head, "choices": [], "usage": counts}), *done]

    def event(self, value: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def _quick(self, i: int, body: str, why: str | None) -> bytes:
        """A chunk with one short text: most of all events, so it is not built as a dict first."""
        finish = "null" if why is None else f'"{why}"'
        usage = ', "usage":null' if self.call.include_usage else ""
        choice = f'{{"index":{i},{body},"logprobs":null,"finish_reason":{finish}}}'
        return f'data: {self._prefix}, "choices":[{choice}]{usage}}}\n\n'.encode()

    def _chunk(self, i: int, **more: Any) -> dict[str, Any]:
        return self._wrapped({"index": i, "logprobs": None, "finish_reason": None, **more})

    def _wrapped(self, choice: dict[str, Any]) -> dict[str, Any]:
        unused = {"usage": None} if self.call.include_usage else {}
        return {**self._head, "choices": [choice], **unused}


def ids_answer(outputs: Sequence[Output], id: str) -> list[dict[str, Any]]:
    """The answer of /generate: one entry per output."""
    return [
        {
            "output_ids": list(output.output_ids),
            "meta_info": {
                "id": id,
                "finish_reason": reason(output.finish_reason, len(output.output_ids)),
                "prompt_tokens": output.prompt_tok,
                "completion_tokens": len(output.output_ids),
                "cached_tokens": output.hit_tok,
                "output_token_logprobs": [[told_value(lp.logprob), lp.id] for lp in output.logprobs],
            },
        }
        for output in outputs
    ]
