"""Sends the load: open loops by the clock, closed loops by what has been answered."""

import asyncio
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import numpy as np

from serving.bench.client import arrivals
from serving.bench.client.calls import CallRecord, read_stream, request_bytes
from serving.bench.client.connection import ConnectionPool, RawAnswer, ServerAddress
from serving.bench.client.mix import ClientPlan
from serving.bench.client.prompts import PromptMaker, PromptToSend


@dataclass(frozen=True, kw_only=True)
class RouteToCall:
    """How a prompt becomes a request.

    Attributes:
      path: e.g. /v1/completions; chat: prompts are sent as one user message.
      extra: further fields of every body; keys: API key by client name.
    """

    server: ServerAddress
    path: str
    chat: bool
    model: str
    ignore_eos: bool
    temperature: float
    extra: dict[str, Any]
    keys: dict[str, str]
    timeout_s: float

    def request(self, prompt: PromptToSend, client: str, user: str) -> bytes:
        """Raises ValueError if ids were to be sent as a chat."""
        body: dict[str, Any] = {"model": self.model}
        if self.chat:
            if not isinstance(prompt.prompt, str):
                raise ValueError("a chat takes text, but the prompts are token ids")
            body["messages"] = [{"role": "user", "content": prompt.prompt}]
        else:
            body["prompt"] = prompt.prompt
        body |= {"max_tokens": prompt.output_tok, "temperature": self.temperature, "stream": True}
        body["stream_options"] = {"include_usage": True}
        body |= {"ignore_eos": True} if self.ignore_eos else {}
        body |= {"user": user} if user else {}
        return request_bytes(self.server, self.path, body | self.extra, self._headers(client))

    def _headers(self, client: str) -> dict[str, str]:
        key = self.keys.get(client) or self.keys.get("")
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass
class LoadCost:
    """What the client itself took: CPU seconds of its process, and how late it sent what was due."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    late_s: list[float] = field(default_factory=list)


class LoadGenerator:
    """Runs the plans of all clients together.

    Args:
      told: called after each answered request, for progress.
    """

    def __init__(self, route: RouteToCall, told: Callable[[CallRecord], None] = lambda record: None) -> None:
        self._route, self._told = route, told
        self._pool = ConnectionPool(route.server)
        self.records: list[CallRecord] = []
        self.cost = LoadCost()

    async def run(
        self,
        plans: Sequence[ClientPlan],
        prompts: Sequence[Sequence[PromptToSend]],
        times: Sequence[Sequence[float]],
    ) -> None:
        """Sends everything and waits for the answers.

        Args:
          prompts, times: of each plan; times in seconds after its start, empty = a closed loop.
        """
        ready = [self._encoded(plan, given) for plan, given in zip(plans, prompts)]
        gc.collect()
        gc.freeze()  # the collector does not walk what was prepared
        cpu_s, began_s = time.process_time(), time.monotonic()
        try:
            await asyncio.gather(
                *(self._client(began_s, plan, raw, at_s) for plan, raw, at_s in zip(plans, ready, times))
            )
        finally:
            self.cost.cpu_s = time.process_time() - cpu_s
            self.cost.wall_s = time.monotonic() - began_s
            self._pool.close()

    async def once(self, plan: ClientPlan, prompt: PromptToSend) -> CallRecord:
        """One request outside the measurement."""
        [raw] = self._encoded(plan, [prompt])
        return await self._call(plan.name, raw, time.monotonic())

    def _encoded(self, plan: ClientPlan, prompts: Sequence[PromptToSend]) -> list[bytes]:
        names = [f"{plan.name}-{i}" for i in range(plan.users)] if plan.users > 1 else [plan.name]
        return [
            self._route.request(prompt, plan.name, names[i % len(names)]) for i, prompt in enumerate(prompts)
        ]

    async def _client(
        self, began_s: float, plan: ClientPlan, requests: Sequence[bytes], times: Sequence[float]
    ) -> None:
        await asyncio.sleep(max(0.0, began_s + plan.start_s - time.monotonic()))
        start_s = began_s + plan.start_s
        if times:
            await self._open_loop(plan, requests, [start_s + t for t in times])
        else:
            await self._closed_loop(plan, requests, start_s)

    async def _open_loop(self, plan: ClientPlan, requests: Sequence[bytes], due_s: Sequence[float]) -> None:
        """Requests are sent when they are due, whatever the server does; `concurrency` may hold them back."""
        gate = asyncio.Semaphore(plan.concurrency or len(requests))
        last_s = due_s[0] + plan.duration_s if plan.duration_s else math.inf
        calls = []

        async def one(raw: bytes, at_s: float) -> None:
            async with gate:
                self.records.append(await self._call(plan.name, raw, at_s))

        for i, at_s in enumerate(due_s):
            if at_s > last_s:
                break
            if (wait_s := at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            self.cost.late_s.append(time.monotonic() - at_s)
            calls.append(asyncio.create_task(one(requests[i], at_s)))
        await asyncio.gather(*calls)

    async def _closed_loop(self, plan: ClientPlan, requests: Sequence[bytes], start_s: float) -> None:
        """`concurrency` callers, each sending its next request when its last is answered."""
        waiting = iter(requests)
        last_s = start_s + plan.duration_s if plan.duration_s else math.inf

        async def caller() -> None:
            nonlocal waiting
            while time.monotonic() < last_s:
                if (raw := next(waiting, None)) is None:
                    if not plan.duration_s:
                        return
                    waiting = iter(requests)
                    continue
                self.records.append(await self._call(plan.name, raw, time.monotonic()))

        await asyncio.gather(*(caller() for _ in range(min(plan.concurrency, len(requests)))))

    async def _call(self, client: str, raw: bytes, due_s: float) -> CallRecord:
        record = CallRecord(client, due_s)
        record.sent_s = time.monotonic()
        connection = None
        try:
            async with asyncio.timeout(self._route.timeout_s):
                connection = await self._pool.take()
                answer = await connection.exchange(raw)
            record.end_s = answer.pieces[-1][0] if answer.pieces else time.monotonic()
            read_stream(record, answer)
        except TimeoutError:
            record.error = f"no whole answer within {self._route.timeout_s:g} s"
        except (OSError, httptools.HttpParserError) as why:
            record.error = f"{type(why).__name__}: {why}"
        if connection is not None:
            self._pool.give_back(connection) if not record.error else connection.close()
        record.end_s = record.end_s or time.monotonic()
        self._told(record)
        return record


def times_of(
    plan: ClientPlan, n: int, rng: np.random.Generator, ramp: tuple[str, float, float] | None
) -> list[float]:
    """Arrival times of an open loop; none for a closed one.

    Args:
      ramp: kind, first and last rate, instead of the plan's rate.
    """
    if ramp is not None:
        return arrivals.ramp_times(n, *ramp, plan.burstiness, rng)
    if math.isinf(plan.rate) and plan.concurrency:
        return []
    return arrivals.gamma_times(n, plan.rate, plan.burstiness, rng)


def prompts_of(plan: ClientPlan, vocab: int, rng: np.random.Generator) -> list[PromptToSend]:
    make = PromptMaker(rng, vocab)
    if plan.groups:
        return make.shared(plan.requests, plan.groups, plan.prefix_len, plan.input_len, plan.output_len)
    return make.random(plan.requests, plan.input_len, plan.output_len, plan.range_ratio)


async def ask(
    server: ServerAddress, path: str, body: dict[str, Any] | None = None, key: str = ""
) -> RawAnswer:
    """One plain exchange, e.g. with /v1/models."""
    pool = ConnectionPool(server)
    connection = await pool.take()
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with asyncio.timeout(30):
            return await connection.exchange(request_bytes(server, path, body, headers))
    finally:
        connection.close()
