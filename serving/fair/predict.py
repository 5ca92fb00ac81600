"""Output length predictors for VTC with length prediction.

A prediction is a whole number of tokens, so that what is paid in advance can be refunded exactly.

Source: VTC (arXiv 2401.00588), section 4.4, Alg. 3.
"""

import hashlib
from typing import Any, Protocol

from serving.request import ClientId, RequestInfo


class Predictor(Protocol):
    """Predicts output lengths from the request and past outputs."""

    def predict(self, request: RequestInfo) -> int:
        """Output tokens to charge in advance; the policy caps them at `max_output_tok`."""

    def observe(self, client: ClientId, output_tok: int) -> None:
        """A request of the client finished after `output_tok` output tokens."""

    def snapshot(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class _Stateless:
    def observe(self, client: ClientId, output_tok: int) -> None:
        pass

    def snapshot(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        pass


class NoPrediction(_Stateless):
    """Predicts 0: output is charged as it is produced."""

    def predict(self, request: RequestInfo) -> int:
        return 0


class GivenLength(_Stateless):
    """The `predicted_tok` of the request (an oracle if the driver knows it), else its output limit."""

    def predict(self, request: RequestInfo) -> int:
        return request.max_output_tok if request.predicted_tok is None else request.predicted_tok


class NoisyLength(_Stateless):
    """`GivenLength` times a factor uniform in 1 -+ `spread`, drawn from the seed and the request's id."""

    def __init__(self, spread: float = 0.5, seed: int = 0) -> None:
        self.spread, self.seed = spread, seed

    def predict(self, request: RequestInfo) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{request.id}".encode(), digest_size=8).digest()
        unit = int.from_bytes(digest) / 2**64
        return round(GivenLength().predict(request) * (1 + self.spread * (2 * unit - 1)))


class RunningMean:
    """Mean length of the client's last `window` outputs; 0 before the first.

    Remembers the `max_clients` that finished a request last.
    """

    def __init__(self, window: int = 5, max_clients: int = 4096) -> None:
        self.window, self.max_clients = window, max_clients
        self.recent: dict[ClientId, list[int]] = {}

    def predict(self, request: RequestInfo) -> int:
        recent = self.recent.get(request.client)
        return round(sum(recent) / len(recent)) if recent else 0

    def observe(self, client: ClientId, output_tok: int) -> None:
        recent = self.recent.pop(client, [])
        recent.append(output_tok)
        del recent[: -self.window]
        self.recent[client] = recent  # last in the order
        if len(self.recent) > self.max_clients:
            del self.recent[next(iter(self.recent))]

    def snapshot(self) -> Any:
        return {client: list(recent) for client, recent in self.recent.items()}

    def restore(self, state: Any) -> None:
        self.recent = {client: list(recent) for client, recent in state.items()}


no_prediction = NoPrediction()


def make_predictor(name: str, *, seed: int = 0, spread: float = 0.5, window: int = 5) -> Predictor:
    """Creates `oracle` (`GivenLength`), `noisy` (`NoisyLength`) or `mean` (`RunningMean`).

    Raises:
      ValueError: unknown name.
    """
    match name:
        case "oracle":
            return GivenLength()
        case "noisy":
            return NoisyLength(spread, seed)
        case "mean":
            return RunningMean(window)
    raise ValueError(f"unknown predictor {name!r}; known: oracle, noisy, mean")
