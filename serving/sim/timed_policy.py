"""A policy that measures its own decisions, with a clock given from outside."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from serving.fair.policy import Policy
from serving.request import ClientId, RequestId, RequestInfo


class TimedPolicy(Policy):
    """Delegates to `policy` and times its `pick`.

    Attributes:
      policy: the policy that decides.
      decisions: calls of `pick` so far. seconds: their total time.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float]):
        self.policy, self.clock = policy, clock
        self.decisions, self.seconds = 0, 0.0

    def pick(self, now_s: float) -> RequestInfo | None:
        start = self.clock()
        info = self.policy.pick(now_s)
        self.seconds += self.clock() - start
        self.decisions += 1
        return info

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        return self.policy.arrive(request, now_s)

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        self.policy.admit(request, extend_tok=extend_tok, hit_tok=hit_tok)

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        self.policy.decoded(tokens_of)

    def finish(self, id: RequestId) -> None:
        self.policy.finish(id)

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self.policy.cancel(id, prefilled_tok=prefilled_tok)

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        self.policy.preempt(id, prefilled_tok=prefilled_tok)

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
