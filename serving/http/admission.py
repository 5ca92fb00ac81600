"""Who may queue: the server's limits (503) and a key's (429), taken before a prompt is tokenised.

A `Ticket` holds what a call takes of the limits and gives it back piece by piece: its place in the queue when
an output begins to run, the rest when the output ends.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.http.errors import ApiError
from serving.http.keys import ApiKey
from serving.http.settings import HttpLimits

CHARS_PER_TOK = 4  # a guess, replaced once the prompt is tokenised


@dataclass
class TokenAllowance:
    """Tokens per minute of one key: a bucket that refills steadily and holds a minute's worth."""

    per_minute: int
    level: float
    at_s: float

    def take(self, tokens: int, now_s: float) -> float:
        """Takes `tokens`, or all there is room for; else the seconds until that works."""
        refilled = self.level + (now_s - self.at_s) * self.per_minute / 60
        self.level, self.at_s = min(float(self.per_minute), refilled), now_s
        need = min(tokens, self.per_minute)
        if self.level < need:
            return (need - self.level) * 60 / self.per_minute
        self.level -= tokens
        return 0.0

    def give_back(self, tokens: int) -> None:
        self.level = min(float(self.per_minute), self.level + tokens)


@dataclass
class Ticket:
    """What one call holds.

    Attributes:
      waiting: names of its outputs that have not begun to run (unnamed until it is submitted).
      live: its outputs that have not ended.
      tok: prompt tokens of each of its outputs in the queue.
      allowed: tokens taken from its key's allowance.
    """

    key: ApiKey | None
    live: int
    tok: int
    allowed: int
    queued: int
    waiting: set[str] = field(default_factory=set)


class Admission:
    """The counts behind the limits; on the event loop only."""

    def __init__(self, limits: HttpLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self.queued = self.queued_tok = 0
        self.live_of: dict[str, int] = {}
        self._allowances: dict[str, TokenAllowance] = {}

    def take(self, key: ApiKey | None, outputs: int, prompt_tok: int, output_tok: int) -> Ticket:
        """A place for `outputs` outputs.

        Args:
          prompt_tok: of all prompts together, perhaps a guess; output_tok: of each output, at most.

        Raises:
          ApiError: 503: the server's queue is full; 429: the key's limit is reached.
        """
        limits = self._limits
        if self.queued + outputs > limits.queued_requests:
            waiting = f"{self.queued} outputs wait and {limits.queued_requests} may"
            raise ApiError(503, f"{waiting}; this call has {outputs}", code="queue_full", retry_after_s=1)
        if self.queued and self.queued_tok + prompt_tok > limits.queued_tok:
            waiting = f"{self.queued_tok} prompt tokens wait and {limits.queued_tok} may"
            raise ApiError(503, f"{waiting}; this call has {prompt_tok}", code="queue_full", retry_after_s=1)
        tokens = prompt_tok + outputs * output_tok
        if key is not None:
            self._take_of_key(key, outputs, tokens)
            self.live_of[key.name] = self.live_of.get(key.name, 0) + outputs
        share_tok = prompt_tok // outputs
        self.queued += outputs
        self.queued_tok += outputs * share_tok
        return Ticket(key, outputs, share_tok, tokens, outputs)

    def _take_of_key(self, key: ApiKey, outputs: int, tokens: int) -> None:
        live = self.live_of.get(key.name, 0)
        if key.inflight and live + outputs > key.inflight:
            message = f"key {key.name} has {live} outputs in flight and may have {key.inflight}"
            raise ApiError(429, message, code="too_many_inflight", retry_after_s=1)
        if key.tokens_per_minute:
            wait_s = self._allowance(key).take(tokens, self._clock())
            if wait_s > 0:
                message = f"key {key.name} has used its {key.tokens_per_minute} tokens per minute"
                raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)

    def _allowance(self, key: ApiKey) -> TokenAllowance:
        held = self._allowances.get(key.name)
        if held is None or held.per_minute != key.tokens_per_minute:
            full = float(key.tokens_per_minute)
            held = TokenAllowance(key.tokens_per_minute, full, self._clock())
            self._allowances[key.name] = held
        return held

    def started(self, ticket: Ticket, name: str | None = None) -> None:
        """One of its outputs no longer waits."""
        if name is not None:
            if name not in ticket.waiting:
                return
            ticket.waiting.discard(name)
        if ticket.queued:
            ticket.queued -= 1
            self.queued -= 1
            self.queued_tok -= ticket.tok

    def ended(self, ticket: Ticket, name: str | None = None) -> None:
        """One of its outputs ended, perhaps without having begun."""
        self.started(ticket, name)
        if ticket.live:
            ticket.live -= 1
            if ticket.key is not None:
                left = self.live_of[ticket.key.name] - 1
                self.live_of[ticket.key.name] = left
                if not left:
                    del self.live_of[ticket.key.name]

    def settle(self, ticket: Ticket, used_tok: int) -> None:
        """The call is over: what it still holds goes back, and so do tokens it did not use."""
        while ticket.queued:
            self.started(ticket)
        while ticket.live:
            self.ended(ticket)
        if ticket.key is not None and ticket.key.tokens_per_minute and ticket.allowed:
            self._allowance(ticket.key).give_back(ticket.allowed - used_tok)
        ticket.allowed = 0
