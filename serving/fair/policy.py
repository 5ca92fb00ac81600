"""What a scheduling policy is: a ledger behind eight events, and one question, "who is next?".

A policy never sees tokens, pages, clocks or devices. Whoever drives it (the engine or the simulator)
reports what happened, in order, and asks `pick()` whenever there may be room. The same event sequence
gives the same answers, byte for byte; `snapshot`/`restore` are exact.

The driver's promises:
  * `arrive` once per request; if it returns False the request is refused and never heard of again.
  * `pick` names a waiting request. The driver then either calls `admit` for it or stops picking this
    pass: nobody is skipped because the head does not fit.
  * `admit` carries what the prefix cache saved, measured at admission. After it, tokens of the request
    are reported by `decoded` until exactly one of `finish`, `cancel` or `preempt`.
  * `preempt` puts a running request back to waiting, ahead of its client's other requests. Tokens it had
    already produced are prompt now (`RequestInfo` does not change); redone work is not billed twice.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from serving.request import ClientId, RequestId, RequestInfo

type Match = Callable[[RequestInfo], int]
"""Tokens of a waiting request's prompt that the prefix cache holds right now.

A match that knows more says so by attributes: `changed()` gives the waiting requests whose match may
differ since it was asked last (None: any may), `path(ask)` the nodes of the prefix tree along the prompt.
"""


class Policy(Protocol):
    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        """A request joins the waiting set. Returns False to refuse it (rate limits only)."""

    def pick(self, now_s: float) -> RequestInfo | None:
        """The request to admit next, or None if nothing waits. May refill credit; admits nothing."""

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        """`request` runs now: its prefill computes `extend_tok` and finds `hit_tok` in the cache."""

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        """Running requests produced these numbers of output tokens."""

    def finish(self, id: RequestId) -> None:
        """A running request is complete."""

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """A waiting or running request is gone; executed work stays billed.

        `prefilled_tok`: how many tokens of its prefill were executed or hit; None means all of them.
        """

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """A running request lost its memory and waits again.

        `prefilled_tok` as in `cancel`. An admission that was planned and not carried out is taken back by
        `preempt(id, prefilled_tok=0)`: state and bill are as if it had not been.
        """

    def served(self) -> Mapping[ClientId, int]:
        """Service charged so far per client, in ledger units (see `fair.ledger.SCALE`)."""

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        """The proven bound on |W_f - W_g| of two backlogged clients in weighted tokens, or None.

        Holds under `reserve` admission, where prompts plus maximal outputs of the running batch fit in
        `memory_tok`. With a prefix cache, `max_hit_tok` of a prompt may take no room there (all of it, say).
        """

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Replaces the state by one that `snapshot` returned."""
