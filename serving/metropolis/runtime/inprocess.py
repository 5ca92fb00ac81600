"""This project's engine as a language model, with continuous batching in the same process.

The engine steps in one worker thread. Between two steps the event loop submits new calls, smallest priority
first and never more at once than the engine has slots, so that their order is decided here and not in its
queue.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Unpack

from mixattn.evals.llm import (
    CallFailed,
    CallOptions,
    Completion,
    LanguageModel,
    Likelihood,
    Messages,
    Prompt,
    Usage,
    as_text,
)
from serving.request import Output, Request, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine


def bytes_to_ids(text: str) -> list[int]:
    """Returns UTF-8 bytes as token ids, for models without a tokenizer (vocabulary of at least 256)."""
    return list(text.encode())


def ids_to_bytes(ids: Sequence[int]) -> str:
    """Inverts `bytes_to_ids`. Invalid UTF-8 becomes replacement characters; ids above 255 are dropped."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


@dataclass(slots=True, eq=False)
class _Call:
    request: Request
    done: asyncio.Future[Output]


class EngineModel(LanguageModel):
    """A `LanguageModel` over an `Engine`. Use it from one event loop; `close()` ends its thread.

    Args:
      engine: no other code may step it at the same time.
      encode, decode: convert text to token ids and back.
      render: turns a conversation into text that ends where the answer begins, like a chat template.
    """

    def __init__(
        self,
        engine: "Engine",
        encode: Callable[[str], list[int]] = bytes_to_ids,
        decode: Callable[[Sequence[int]], str] = ids_to_bytes,
        render: Callable[[Messages], str] = as_text,
    ) -> None:
        self._engine, self._encode, self._decode, self._render = engine, encode, decode, render
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, _Call]] = []
        self._submitted: dict[str, _Call] = {}
        self._step_task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Ends the worker thread."""
        self._thread.shutdown()

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        client: str = "",
        stop: Sequence[str] = (),
    ) -> Completion:
        ids = self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(
            max_tokens=max_tokens, temperature=temperature, seed=None if seed is None else seed % 2**31
        )
        output = await self._call(ids, sampling, priority, client)
        text = self._decode(output.output_ids)
        for stop_text in stop:
            text = text.split(stop_text, 1)[0]
        usage = Usage(output.prompt_tok, len(output.output_ids), output.hit_tok)
        return Completion(text, usage, output.finish_reason)

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        return await self.complete(self._render(messages), **options)

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        """From the log-probabilities of a prompt that ends in the continuation.

        Raises:
          CallFailed: the engine's config does not compile `prompt_logprobs` in, or the prompt is too long.
        """
        prompt_ids = self._encode(self._render(messages))
        scoring = Sampling(max_tokens=1, prompt_logprobs=0)

        async def one(continuation: str) -> Likelihood:
            ids = prompt_ids + self._encode(continuation)
            output = await self._call(ids, scoring, priority, client)
            found = output.prompt_logprobs[len(prompt_ids) - 1 :]  # they begin with the second token
            return Likelihood(math.fsum(each.logprob for each in found), len(found))

        return list(await asyncio.gather(*map(one, continuations)))

    async def _call(self, ids: list[int], sampling: Sampling, priority: int, client: str) -> Output:
        request = Request(client=client or "anyone", prompt_ids=ids, sampling=sampling)
        call = _Call(request, asyncio.get_running_loop().create_future())
        heappush(self._waiting, (priority, next(self._order), call))
        if self._step_task is None or self._step_task.done():
            self._step_task = asyncio.create_task(self._run())
        output = await call.done
        if output.finish_reason not in ("stop", "length"):
            raise CallFailed(f"the engine ended the call: {output.finish_reason}", transient=True)
        return output

    async def _run(self) -> None:
        """Submits calls and steps the engine until no call waits. If the engine raises, every call fails."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._engine.live:
                self._submit_waiting()
                for delta in await loop.run_in_executor(self._thread, self._engine.step):
                    if delta.output is not None:
                        call = self._submitted.pop(delta.id)
                        if not call.done.done():
                            call.done.set_result(delta.output)
        except Exception as error:
            for call in (*self._submitted.values(), *(call for _, _, call in self._waiting)):
                if not call.done.done():
                    call.done.set_exception(CallFailed(f"the engine failed: {error}", transient=False))
            self._waiting.clear()
            raise

    def _submit_waiting(self) -> None:
        for id, call in self._submitted.items():
            if call.done.cancelled():
                self._engine.cancel(id)
        while self._waiting and len(self._submitted) < self._engine.config.max_slots:
            call = heappop(self._waiting)[2]
            if call.done.done():
                continue
            try:
                id = self._engine.submit(call.request)
            except ValueError as error:
                call.done.set_exception(CallFailed(str(error), transient=False))
            else:
                self._submitted[id] = call
