"""A policy that cannot stop the server: `fcfs` replaces one that raises, or picks nobody while requests wait.

The proven bounds of the policy end with the replacement; `failure` says why it happened.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from absl import logging

from serving import fair
from serving.fair.policy import Policy
from serving.request import ClientId, RequestId, RequestInfo

MAX_EMPTY_PICKS = 64  # times in a row a policy may pick nobody while a request waits


class FallbackPolicy:
    """A `Policy` around another.

    Attributes:
      failure: why the policy was replaced, or None.
      waiting, running: the requests it has been told of.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.failure: str | None = None
        self.waiting: dict[RequestId, RequestInfo] = {}
        self.running: dict[RequestId, RequestInfo] = {}
        self._empty_picks = 0

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        accepted = self._tried("arrive", lambda policy: policy.arrive(request, now_s))
        if accepted:
            self.waiting[request.id] = request
        return accepted

    def pick(self, now_s: float) -> RequestInfo | None:
        picked = self._tried("pick", lambda policy: policy.pick(now_s))
        self._empty_picks = 0 if picked is not None or not self.waiting else self._empty_picks + 1
        if self._empty_picks > MAX_EMPTY_PICKS or (picked is not None and picked.id not in self.waiting):
            self._replace(f"picked {picked and picked.id!r} while {len(self.waiting)} requests waited")
            picked = self.policy.pick(now_s)
        return picked

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        self._tried("admit", lambda policy: policy.admit(request, extend_tok=extend_tok, hit_tok=hit_tok))
        self.running[request.id] = self.waiting.pop(request.id)

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        self._tried("decoded", lambda policy: policy.decoded(tokens_of))

    def finish(self, id: RequestId) -> None:
        self._tried("finish", lambda policy: policy.finish(id))
        del self.running[id]

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self._tried("cancel", lambda policy: policy.cancel(id, prefilled_tok=prefilled_tok))
        self.waiting.pop(id, None)
        self.running.pop(id, None)

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self._tried("preempt", lambda policy: policy.preempt(id, prefilled_tok=prefilled_tok))
        self.waiting[id] = self.running.pop(id)

    def victim(self, now_s: float) -> RequestId | None:
        choose = getattr(self.policy, "victim", None)
        return None if choose is None else choose(now_s)

    def set_weight(self, client: ClientId, weight: float | Fraction) -> None:
        self.policy.set_weight(client, weight)

    def served(self) -> Mapping[ClientId, int]:
        return self.policy.served()

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        return self.policy.gap_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )

    def snapshot(self) -> dict[str, Any]:
        return self.policy.snapshot()

    def restore(self, state: dict[str, Any]) -> None:
        self.policy.restore(state)

    def _tried[T](self, event: str, call: Callable[[Policy], T]) -> T:
        """Calls the policy; if it raises, calls its replacement. A replacement that raises is a bug."""
        try:
            return call(self.policy)
        except Exception as why:
            if self.failure is not None:
                raise
            self._replace(f"raised in {event}: {why!r}")
            return call(self.policy)

    def _replace(self, why: str) -> None:
        """Installs a fresh policy that knows who waits and runs; the failed event is passed on after."""
        logging.error("policy %s %s; fcfs takes over", type(self.policy).__name__, why)
        self.failure, self._empty_picks = why, 0
        self.policy = fair.make("fcfs")
        for request in sorted([*self.waiting.values(), *self.running.values()], key=lambda info: info.seq):
            self.policy.arrive(request, 0.0)
        for request in self.running.values():
            self.policy.admit(request, extend_tok=0, hit_tok=0)
