"""Text as its token ids come: whole characters only, and no part of a text that may turn out to end it."""

from collections.abc import Callable, Sequence

type Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"  # what a decoder makes of bytes that are not (yet) a character
PATIENCE_TOK = 16  # tokens an unfinished character is waited for; longer is not UTF-8


class Text:
    """The text of one request.

    Args:
      decode: ids -> text. Only ever sees a few ids at a time.
      stop: texts that end it, none empty.
      include_stop: what ended it is part of the text.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), *, include_stop: bool = False):
        self._decode, self._stop, self._include_stop = decode, tuple(stop), include_stop
        self._window: list[int] = []  # ids that decoding still looks at
        self._shown = 0  # of them, ids whose text was taken
        self._tail = ""  # decoded, but possibly the beginning of a stop text
        self._ready = ""
        self.stopped_by: str | None = None

    def push(self, id: int, *, may_stop: bool = True) -> bool:
        """Takes the next id; True if a stop text is complete. Nothing may be pushed behind it."""
        self._window.append(id)
        whole, old = self._decode(self._window), self._decode(self._window[: self._shown])
        pending = len(self._window) - self._shown
        if whole.endswith(UNFINISHED) and pending < PATIENCE_TOK:
            return False
        # The ids shown last stay as context: some decoders treat the first id of a text differently.
        del self._window[: self._shown]
        self._shown = len(self._window)
        return self._take(whole[len(old) :], may_stop)

    def pull(self) -> str:
        """Text that may be shown now and was not pulled before."""
        ready, self._ready = self._ready, ""
        return ready

    def close(self) -> None:
        """No more ids: what was held back becomes ready."""
        if self.stopped_by is None:
            whole, old = self._decode(self._window), self._decode(self._window[: self._shown])
            if not self._take(whole[len(old) :], True):
                self._ready, self._tail = self._ready + self._tail, ""

    def _take(self, new: str, may_stop: bool) -> bool:
        self._tail += new
        found = [(at, stop) for stop in self._stop if (at := self._tail.find(stop)) >= 0] if may_stop else []
        if found:
            at, self.stopped_by = min(found)
            end = at + len(self.stopped_by) if self._include_stop else at
            self._ready, self._tail = self._ready + self._tail[:end], ""
            return True
        held = max((_overlap(self._tail, stop) for stop in self._stop), default=0)
        safe = len(self._tail) - held
        self._ready, self._tail = self._ready + self._tail[:safe], self._tail[safe:]
        return False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
