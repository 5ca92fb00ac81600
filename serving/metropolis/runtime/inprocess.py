"""Our own engine as a language model: calls are submitted to continuous batching in this very process.

The engine steps in one worker thread; between two steps the loop hands it new calls, the smallest priority
first, never more at once than it has slots, so that order is decided here and not in its queue.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from mixattn.evals.llm import CallFailed, Completion, Usage
from serving.request import Output, Request, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine


def bytes_to_ids(text: str) -> list[int]:
    """UTF-8 bytes as token ids, for models without a tokenizer (vocabulary of at least 256)."""
    return list(text.encode())


def ids_to_bytes(ids: Sequence[int]) -> str:
    """The inverse; what is no UTF-8 becomes a replacement character, ids beyond 255 are left out."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


@dataclass(slots=True, eq=False)
class _Call:
    request: Request
    done: asyncio.Future[Output]


class EngineModel:
    """A `LanguageModel` over an `Engine`. Use it from one event loop; `close()` ends its thread.

    Args:
      engine: nobody else may step it meanwhile.
      encode, decode: text to ids and back.
    """

    def __init__(
        self,
        engine: "Engine",
        encode: Callable[[str], list[int]] = bytes_to_ids,
        decode: Callable[[Sequence[int]], str] = ids_to_bytes,
    ):
        self._engine, self._encode, self._decode = engine, encode, decode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._order = itertools.count()
        self._inbox: list[tuple[int, int, _Call]] = []
        self._inside: dict[str, _Call] = {}
        self._pump: asyncio.Task[None] | None = None

    def close(self) -> None:
        self._thread.shutdown()

    async def complete(
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        ids = self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        sampling = Sampling(
            max_tokens=max_tokens, temperature=temperature, seed=None if seed is None else seed % 2**31
        )
        request = Request(client=client or "anyone", prompt_ids=ids, sampling=sampling)
        call = _Call(request, asyncio.get_running_loop().create_future())
        heappush(self._inbox, (priority, next(self._order), call))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        output = await call.done
        if output.finish_reason not in ("stop", "length"):
            raise CallFailed(f"the engine ended the call: {output.finish_reason}", transient=True)
        text = self._decode(output.output_ids)
        for end in stop:
            text = text.split(end, 1)[0]
        usage = Usage(output.prompt_tok, len(output.output_ids), output.hit_tok)
        return Completion(text, usage, output.finish_reason)

    async def _run(self) -> None:
        """Feeds and steps the engine until nobody waits; a broken engine breaks every call."""
        loop = asyncio.get_running_loop()
        try:
            while self._inbox or self._engine.live:
                self._feed()
                for delta in await loop.run_in_executor(self._thread, self._engine.step):
                    if delta.output is not None:
                        call = self._inside.pop(delta.id)
                        if not call.done.done():
                            call.done.set_result(delta.output)
        except Exception as why:
            for call in (*self._inside.values(), *(call for _, _, call in self._inbox)):
                if not call.done.done():
                    call.done.set_exception(CallFailed(f"the engine failed: {why}", transient=False))
            self._inbox.clear()
            raise

    def _feed(self) -> None:
        for id, call in self._inside.items():
            if call.done.cancelled():
                self._engine.cancel(id)
        while self._inbox and len(self._inside) < self._engine.config.max_slots:
            call = heappop(self._inbox)[2]
            if call.done.done():
                continue
            try:
                id = self._engine.submit(call.request)
            except ValueError as why:
                call.done.set_exception(CallFailed(str(why), transient=False))
            else:
                self._inside[id] = call
