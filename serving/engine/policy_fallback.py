"""A policy that cannot stop the server: if it raises, or names nobody while requests wait, first come first
served takes over for good.

The proven bounds of the policy end there; `failure` says so.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging

from serving import fair
from serving.fair.policy import Policy
from serving.request import ClientId, RequestId, RequestInfo

PATIENCE = 64  # times in a row a policy may name nobody while somebody waits


class FallbackPolicy:
    """A `Policy` around another.

    Attributes:
      failure: why the policy was replaced, or None.
      waiting, running: what it has been told of.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.failure: str | None = None
        self.waiting: dict[RequestId, RequestInfo] = {}
        self.running: dict[RequestId, RequestInfo] = {}
        self._silent = 0

    def arrive(self, info: RequestInfo, now_s: float) -> bool:
        if accepted := self._call("arrive", info, now_s):
            self.waiting[info.id] = info
        return accepted

    def pick(self, now_s: float) -> RequestInfo | None:
        info = self._call("pick", now_s)
        self._silent = 0 if info is not None or not self.waiting else self._silent + 1
        if self._silent > PATIENCE or (info is not None and info.id not in self.waiting):
            self._replace(f"named {info and info.id!r} while {len(self.waiting)} requests waited")
            info = self.policy.pick(now_s)
        return info

    def admit(self, info: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        self._call("admit", info, extend_tok=extend_tok, hit_tok=hit_tok)
        self.running[info.id] = self.waiting.pop(info.id)

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        self._call("decoded", tokens_of)

    def finish(self, id: RequestId) -> None:
        self._call("finish", id)
        del self.running[id]

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self._call("cancel", id, prefilled_tok=prefilled_tok)
        self.waiting.pop(id, None)
        self.running.pop(id, None)

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self._call("preempt", id, prefilled_tok=prefilled_tok)
        self.waiting[id] = self.running.pop(id)

    def served(self) -> Mapping[ClientId, int]:
        return self.policy.served()

    def gap_bound(self, **sizes: int) -> float | None:
        return self.policy.gap_bound(**sizes)

    def snapshot(self) -> dict[str, Any]:
        return self.policy.snapshot()

    def restore(self, state: dict[str, Any]) -> None:
        self.policy.restore(state)

    def _call(self, event: str, *args, **more) -> Any:
        try:
            return getattr(self.policy, event)(*args, **more)
        except Exception as why:
            if self.failure is not None:
                raise
            self._replace(f"raised in {event}: {why!r}")
            return getattr(self.policy, event)(*args, **more)

    def _replace(self, why: str) -> None:
        """A fresh policy that knows who waits and who runs; the event that failed is still to be told."""
        logging.error("policy %s %s; from here on: fcfs", type(self.policy).__name__, why)
        self.failure, self._silent = why, 0
        self.policy = fair.make("fcfs")
        for info in sorted([*self.waiting.values(), *self.running.values()], key=lambda info: info.seq):
            self.policy.arrive(info, 0.0)
        for info in self.running.values():
            self.policy.admit(info, extend_tok=0, hit_tok=0)
