"""Service of each client while the server runs, from the engine's events; bounded whatever clients call
themselves.

Service is counted in weighted tokens as the policies' proofs count it: 1 for a prompt token, 2 for an output
token. The gap is the largest difference of service of two clients over a time in which both wait.
"""

from typing import TYPE_CHECKING, Any

from serving.fair.metrics import GapMeter
from serving.kvcache.groups import FullGroup
from serving.request import ClientId, RequestId

if TYPE_CHECKING:
    from serving.engine.engine import Engine

PROMPT, OUTPUT = 1, 2
MAX_CLIENTS = 4096  # accounts kept; beyond them those of idle clients go
MAX_WAITING = 64  # clients that wait at once and are compared in pairs


class LiveFairness:
    """Takes events in the engine's thread; read it there too.

    Attributes:
      served: weighted tokens by client. waiting, running: outputs by client.
      gap: the largest so far; None once more clients waited at once than are compared.
    """

    def __init__(self) -> None:
        self.served: dict[ClientId, float] = {}
        self.waiting: dict[ClientId, int] = {}
        self.running: dict[ClientId, int] = {}
        self._meter: GapMeter | None = GapMeter()
        self._live: dict[RequestId, tuple[bool, int]] = {}  # whether it runs, prompt tokens counted

    @property
    def gap(self) -> float | None:
        return None if self._meter is None else self._meter.largest

    def take(self, event: dict[str, Any]) -> None:
        """The next event."""
        kind = event["event"]
        if kind == "tokens":
            self._serve({client: OUTPUT * count for client, count in event["counts"].items()})
        elif kind == "arrive":
            self._live[event["id"]] = False, 0
            self._wait(event["client"])
        elif kind == "admit":
            self._admit(event)
        elif kind in ("finish", "cancel"):
            self._end(event)
        elif kind == "preempt":
            self._live[event["id"]] = False, self._live[event["id"]][1]
            self._add(self.running, event["client"], -1)
            self._wait(event["client"])

    def _admit(self, event: dict[str, Any]) -> None:
        client, prompt_tok = event["client"], event["extend"] + event["hit"]
        _, counted = self._live[event["id"]]
        self._leave(client)
        self._add(self.running, client, 1)
        self._live[event["id"]] = True, counted or prompt_tok
        if not counted:
            self._serve({client: PROMPT * prompt_tok})

    def _end(self, event: dict[str, Any]) -> None:
        client = event["client"]
        runs, counted = self._live.pop(event["id"])
        if runs:
            self._add(self.running, client, -1)
        else:
            self._leave(client)
        if "prefilled" in event and counted:  # announced at admission, and not executed
            self._serve({client: -PROMPT * (counted - event["prefilled"])})

    def _wait(self, client: ClientId) -> None:
        self.served.setdefault(client, 0.0)
        self._add(self.waiting, client, 1)
        if self._meter is not None and self.waiting[client] == 1:
            self._meter.join(client, self.served)
            if len(self._meter.waiting) > MAX_WAITING:
                self._meter = None
        if len(self.served) > MAX_CLIENTS:
            idle = [c for c in self.served if c not in self.waiting and c not in self.running]
            for name in idle[: len(idle) // 2]:
                del self.served[name]

    def _leave(self, client: ClientId) -> None:
        self._add(self.waiting, client, -1)
        if self._meter is not None and client not in self.waiting:
            self._meter.leave(client)

    def _serve(self, amounts: dict[ClientId, float]) -> None:
        for client, amount in amounts.items():
            self.served[client] = self.served.get(client, 0.0) + amount
        if self._meter is not None:
            self._meter.update(amounts, self.served)

    @staticmethod
    def _add(counts: dict[ClientId, int], client: ClientId, amount: int) -> None:
        counts[client] = counts.get(client, 0) + amount
        if not counts[client]:
            del counts[client]


def proven_bound(engine: "Engine") -> float | None:
    """The policy's bound on the gap, for the longest prompt that fits; None where nothing is proven."""
    config = engine.config
    pools = [(g.num_pages - 1) * config.page_size for g in engine.memory.groups if isinstance(g, FullGroup)]
    memory_tok = min([config.max_slots * config.max_request_tok, *pools])
    longest = config.max_request_tok - 1
    hit = longest if config.reuse else 0
    return engine.fallback.gap_bound(memory_tok=memory_tok, max_prompt_tok=longest, max_hit_tok=hit)
