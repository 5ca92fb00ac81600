"""One HTTP call on the event loop: what its outputs have produced and nobody has written yet."""

import asyncio
from collections.abc import Sequence

from serving.http.errors import ApiError
from serving.request import Delta, Request, RequestId


class ActiveCall:
    """The requests of one HTTP call, from submission to the last output.

    Deltas that are not fetched are merged, so that a slow reader holds one per output.

    Attributes:
      requests: one per prompt.
      stream: whether deltas are wanted, or only the end of the last output.
      open: outputs that have not ended.
      error: why the call as a whole failed.
    """

    def __init__(self, requests: Sequence[Request], key: str = "", *, stream: bool = True) -> None:
        self.requests, self.key, self._stream = requests, key, stream
        self.place = {request.id: i for i, request in enumerate(requests)}
        self.open = sum(request.sampling.n for request in requests)
        self.error: ApiError | None = None
        self._pending: dict[tuple[RequestId, int], Delta] = {}
        self._wake = asyncio.Event()

    @property
    def ids(self) -> list[RequestId]:
        return [request.id for request in self.requests]

    def push(self, delta: Delta) -> None:
        """Takes the next delta of one of the outputs."""
        self.open -= delta.output is not None
        if not self._stream:
            if not self.open:
                self._wake.set()
            return
        held = self._pending.get((delta.id, delta.index))
        if held is None:
            self._pending[delta.id, delta.index] = delta
        else:
            held.ids += delta.ids
            held.text += delta.text
            held.logprobs = (*held.logprobs, *delta.logprobs)
            held.output = delta.output or held.output
        self._wake.set()

    def fail(self, error: ApiError) -> None:
        """Ends the call: whoever waits for deltas gets `error`."""
        self.error = self.error or error
        self._wake.set()

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    async def fetch(self) -> list[Delta]:
        """The next deltas, at least one; empty when all outputs have ended.

        Raises:
          ApiError: the call failed.
        """
        while not self._pending and self.open and self.error is None:
            self._wake.clear()
            await self._wake.wait()
        if self.error is not None:
            raise self.error
        deltas, self._pending = list(self._pending.values()), {}
        return deltas
