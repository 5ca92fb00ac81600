"""The interface of a scheduling policy: a ledger that is called with every event and picks the next request.

A policy never sees tokens, pages, clocks or devices. Its driver (the engine or the simulator) reports events
in order and calls `pick()` whenever there may be room. Decisions are deterministic: the same event sequence
gives the same answers. `snapshot` and `restore` are exact.

What the driver guarantees:
  * `arrive` is called once per request. If it returns False, the request is refused and no further event
    names it.
  * `pick` returns a waiting request. The driver then either calls `admit` for it or stops picking in this
    pass. No request is skipped because the head does not fit.
  * `admit` reports what the prefix cache saved, measured at admission. From then on `decoded` reports the
    request's tokens until exactly one of `finish`, `cancel` or `preempt`.
  * Where the picked request does not fit, a driver asks a policy that has the method `victim(now_s)` for the
    id of a running request to preempt, or None, and tries again (see `vtc_preempt`).
  * `preempt` returns a running request to waiting, ahead of its client's other requests. Tokens it had
    produced count as prompt from then on (`RequestInfo` does not change). Recomputation is not charged again.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

from serving.request import ClientId, RequestId, RequestInfo

type Match = Callable[[RequestInfo], int]
"""Number of prompt tokens of a waiting request that the prefix cache holds now.

A match function may offer more through attributes: `changed()` returns the waiting requests whose match may
differ since its last call (None: any may), and `path(request)` returns the prefix tree's nodes along the
prompt.
"""


class Policy(Protocol):
    """The events of a scheduling policy and its one decision, `pick`."""

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        """Adds a request to the waiting set. Returns False to refuse it (rate limits only)."""

    def pick(self, now_s: float) -> RequestInfo | None:
        """Returns the request to admit next, or None if none waits. May refill credit; admits nothing."""

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        """`request` starts to run: its prefill computes `extend_tok` and finds `hit_tok` in the cache."""

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        """Running requests produced these numbers of output tokens."""

    def finish(self, id: RequestId) -> None:
        """A running request is complete."""

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """A waiting or running request was cancelled. Executed work stays charged.

        `prefilled_tok`: prefill tokens that were executed or hit; None means all of them.
        """

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """A running request lost its memory and waits again.

        `prefilled_tok` as in `cancel`. `preempt(id, prefilled_tok=0)` undoes an admission that was planned
        and not carried out: state and charges are as before it.
        """

    def set_weight(self, client: ClientId, weight: float | Fraction) -> None:
        """From now on the client has this share. What it has received and is owed does not change.

        Raises:
          ValueError: the weight is not above 0, or the policy does not share by weight.
        """

    def served(self) -> Mapping[ClientId, int]:
        """Service charged so far per client, in ledger units (see `fair.ledger.SCALE`)."""

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        """The proven bound on |W_f/phi_f - W_g/phi_g| of two backlogged clients of weights phi, or None.

        In weighted tokens (per unit of weight).

        Holds under `reserve` admission, where prompts plus maximal outputs of the running batch fit in
        `memory_tok`. With a prefix cache, up to `max_hit_tok` of a prompt may occupy none of that memory.
        """

    def snapshot(self) -> dict[str, Any]:
        """Returns the whole state as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Replaces the state by one that `snapshot` returned."""
