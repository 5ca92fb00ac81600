"""Synthetic workloads of several clients: bursts of requests with random lengths, some with a shared prefix.

Arrivals depend on progress, not on a clock: a burst arrives when a given number of requests (of any client)
has finished. Every policy therefore sees the same order of events, however fast the machine is.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.request import Request, Sampling


@dataclass(kw_only=True)
class ClientProfile:
    """The requests of one client.

    Attributes:
      bursts, size: number of bursts, and requests per burst.
      every: finished requests (of any client) between two of its bursts; the first arrives at the start.
      prompt_tok, output_tok: minimum and maximum, in tokens.
      shared_tok: length of the prefix that all its prompts share, included in `prompt_tok`.
    """

    name: str
    bursts: int = 1
    size: int = 1
    every: int = 1
    prompt_tok: tuple[int, int] = (32, 64)
    output_tok: tuple[int, int] = (16, 32)
    shared_tok: int = 0

    def check(self) -> None:
        for name in ("prompt_tok", "output_tok"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"client {self.name!r}: {name} runs from {low} to {high}")
        if self.shared_tok >= self.prompt_tok[0]:
            low = self.prompt_tok[0]
            raise ValueError(f"client {self.name!r} shares {self.shared_tok} tokens; prompts start at {low}")


@dataclass(kw_only=True)
class Workload:
    """Clients, and the sampling parameters of all their requests."""

    clients: list[ClientProfile] = field(default_factory=list)
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def check(self) -> None:
        for client in self.clients:
            client.check()
        names = [c.name for c in self.clients]
        if len(set(names)) < len(names):
            raise ValueError(f"client names {names} are not unique")

    @property
    def requests(self) -> int:
        return sum(c.bursts * c.size for c in self.clients)


class Arrivals:
    """The requests of a workload, by the number of finished requests at which they arrive.

    Args:
      documents: token ids to cut prompts from.

    Raises:
      ValueError: no document is as long as the longest prompt.
    """

    def __init__(self, workload: Workload, documents: Sequence[Sequence[int]]) -> None:
        self._pending = [
            (c.every * b, burst)
            for c in workload.clients
            for b, burst in enumerate(_bursts(c, workload, documents))
        ]
        self._pending.sort(key=lambda due: due[0])  # stable: bursts that coincide keep the order of clients

    def __len__(self) -> int:
        """Bursts that have not arrived yet."""
        return len(self._pending)

    def due(self, finished: int, idle: bool) -> list[Request]:
        """Requests that arrive after `finished` requests; an `idle` server always gets the next burst."""
        ready: list[Request] = []
        while self._pending and (self._pending[0][0] <= finished or (idle and not ready)):
            ready += self._pending.pop(0)[1]
        return ready


def _bursts(
    client: ClientProfile, workload: Workload, documents: Sequence[Sequence[int]]
) -> Iterator[list[Request]]:
    rng = random.Random(f"{workload.seed} {client.name}")
    prefix = _cut(rng, documents, client.shared_tok) if client.shared_tok else []
    for b in range(client.bursts):
        burst = []
        for i in range(client.size):
            length = rng.randint(*client.prompt_tok)
            sampling = Sampling(
                max_tokens=rng.randint(*client.output_tok),
                temperature=workload.temperature,
                top_p=workload.top_p,
                seed=rng.getrandbits(31),
            )
            prompt = prefix + _cut(rng, documents, length - len(prefix))
            burst.append(
                Request(client=client.name, id=f"{client.name}-{b}-{i}", prompt_ids=prompt, sampling=sampling)
            )
        yield burst


def _cut(rng: random.Random, documents: Sequence[Sequence[int]], length: int) -> list[int]:
    fit = [d for d in documents if len(d) >= length]
    if not fit:
        longest = max(map(len, documents), default=0)
        raise ValueError(
            f"a prompt needs {length} tokens in a row; the longest held-out document has {longest}"
        )
    document = rng.choice(fit)
    start = rng.randrange(len(document) - length + 1)
    return list(document[start : start + length])
