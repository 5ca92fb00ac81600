"""What the server needs of whatever computes: one engine in a thread, or a cluster of workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.engine.stats import EngineStats
from serving.request import ClientId, Delta, Request, RequestId


@dataclass
class StepReport:
    """What a step brought.

    Attributes:
      at_s: when it ended, on the monotonic clock.
      admitted: outputs that began to run: the name it is scheduled under, prompt tokens to compute, and
        prompt tokens found in the cache.
      refused: requests that were not taken, and why.
    """

    at_s: float
    deltas: list[Delta] = field(default_factory=list)
    admitted: list[tuple[str, int, int]] = field(default_factory=list)
    refused: list[tuple[RequestId, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.deltas or self.admitted or self.refused)


type Deliver = Callable[[StepReport], None]


class Backend(Protocol):
    """Called on the event loop; reports come there too, to the `Deliver` it was made with.

    Attributes:
      listeners: of scheduling events, in whatever thread they happen.
      failed_code, retry_s: while it has `failed`: the word for programs, and when to ask again.
    """

    listeners: list[Callable[[dict[str, Any]], None]]
    failed_code: str
    retry_s: float

    @property
    def failed(self) -> str | None:
        """Why it can serve no longer, or not now."""
        ...

    def check(self, request: Request) -> None:
        """Raises ValueError if `request` can never be served."""
        ...

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues the requests of one call, all or none."""
        ...

    def cancel(self, ids: Sequence[RequestId]) -> None: ...

    def stuck_s(self) -> float:
        """Seconds that the running step has taken; 0 between steps."""
        ...

    def stop(self, *, wait: bool = True) -> None:
        """Ends it; live requests stay where they are."""
        ...

    async def stats(self) -> EngineStats: ...

    async def served(self) -> Mapping[ClientId, int]:
        """Service of each client by the policy's account, in weighted tokens."""
        ...

    async def flush(self) -> bool:
        """Empties the prefix cache; False while requests run."""
        ...

    def described(self) -> dict[str, Any]:
        """Its configuration, ready for JSON."""
        ...
