"""Guesses of output lengths for VTC with length prediction (VTC section 4.4, Alg. 3).

A guess is a whole number of tokens (a fraction would be paid for and never given back exactly).
"""

import hashlib
from typing import Any, Protocol

from serving.request import ClientId, RequestInfo


class Predictor(Protocol):
    def guess(self, request: RequestInfo) -> int:
        """Output tokens to charge in advance; the policy caps it at `max_output_tok`."""

    def learn(self, client: ClientId, output_tok: int) -> None:
        """A request of the client finished after so many tokens."""

    def snapshot(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class _Stateless:
    def learn(self, client: ClientId, output_tok: int) -> None:
        pass

    def snapshot(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        pass


class NoPrediction(_Stateless):
    """Pay as you go."""

    def guess(self, request: RequestInfo) -> int:
        return 0


class Given(_Stateless):
    """What came with the request (an oracle when the driver knows), else its output limit."""

    def guess(self, request: RequestInfo) -> int:
        return request.max_output_tok if request.predicted_tok is None else request.predicted_tok


class Noisy(_Stateless):
    """The given guess times a factor uniform in 1 -+ `spread`, drawn from the seed and the request's id."""

    def __init__(self, spread: float = 0.5, seed: int = 0):
        self.spread, self.seed = spread, seed

    def guess(self, request: RequestInfo) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{request.id}".encode(), digest_size=8).digest()
        unit = int.from_bytes(digest) / 2**64
        return round(Given().guess(request) * (1 + self.spread * (2 * unit - 1)))


class RunningMean:
    """Mean of the client's last `window` outputs; 0 before the first."""

    def __init__(self, window: int = 5):
        self.window = window
        self.recent: dict[ClientId, list[int]] = {}

    def guess(self, request: RequestInfo) -> int:
        recent = self.recent.get(request.client)
        return round(sum(recent) / len(recent)) if recent else 0

    def learn(self, client: ClientId, output_tok: int) -> None:
        recent = self.recent.setdefault(client, [])
        recent.append(output_tok)
        del recent[: -self.window]

    def snapshot(self) -> Any:
        return {client: list(recent) for client, recent in self.recent.items()}

    def restore(self, state: Any) -> None:
        self.recent = {client: list(recent) for client, recent in state.items()}


no_prediction = NoPrediction()


def named(name: str, *, seed: int = 0, spread: float = 0.5, window: int = 5) -> Predictor:
    """`oracle` (the length given with the request), `noisy` (that -+ spread), `mean` (of the last
    `window`)."""
    match name:
        case "oracle":
            return Given()
        case "noisy":
            return Noisy(spread, seed)
        case "mean":
            return RunningMean(window)
    raise ValueError(f"unknown predictor {name!r}; known: oracle, noisy, mean")
