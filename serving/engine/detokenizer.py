"""Incremental detokenization: whole characters only, and no part of a possible stop text."""

from collections.abc import Callable, Sequence

type Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"  # what a decoder makes of bytes that are not (yet) a character
MAX_WAIT_TOK = 16  # tokens to wait for the rest of a character; longer is not UTF-8
MAX_CHARACTER = 4  # bytes, and so tokens
CONTEXT_TOK = 8  # ids that are decoded again with new ones as context


class IncrementalDetokenizer:
    """The text of one request.

    Decoding is expensive: with stop texts it is done for every id, otherwise only when text is pulled.

    Args:
      decode: ids -> text; called with a few ids at a time.
      stop: texts that end it, none empty.
      include_stop: whether the text that ended it is part of the output.
      prompt: ids before the first one. Decoders of SentencePiece drop the space that a text begins with, so
        the first id needs some of them as context.
    """

    def __init__(
        self,
        decode: Decode,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        prompt: Sequence[int] = (),
    ):
        self._decode, self._stop, self._include_stop = decode, tuple(stop), include_stop
        context, text = _context(decode, prompt)
        self._window = context  # ids that decoding still looks at
        self._whole = len(context)  # of them, ids that end with a whole character
        self._seen = len(text)  # characters of the window's text that were taken
        self._unread = self._waited = 0  # ids pushed since decoding; since it last gave anything
        self._tail = ""  # decoded, but possibly the beginning of a stop text
        self._ready = ""
        self.stopped_by: str | None = None

    def push(self, id: int, *, may_stop: bool = True) -> bool:
        """Takes the next id; True if a stop text is complete, after which nothing may be pushed."""
        self._window.append(id)
        self._unread += 1
        return bool(self._stop) and self._take(self._read(), may_stop)

    def pull(self) -> str:
        """Text that may be shown now and was not pulled before."""
        if self._unread:
            self._take(self._read(), False)
        ready, self._ready = self._ready, ""
        return ready

    def close(self) -> None:
        """Ends the ids: text that was held back becomes ready."""
        if self.stopped_by is None:
            rest = self._decode(self._window)[self._seen :]
            self._ready, self._tail = self._ready + self._tail + rest, ""
            self._window, self._unread, self._seen = [], 0, 0

    def _read(self) -> str:
        """What the ids so far add to the text, without an unfinished character."""
        self._waited, self._unread = self._waited + self._unread, 0
        whole, end = self._longest_whole()
        new = whole[self._seen :]
        self._seen = max(self._seen, len(whole))
        if new or end == len(self._window):
            self._waited = 0
        if end > self._whole:
            self._slide(end)
        return new

    def _longest_whole(self) -> tuple[str, int]:
        """The window's text without an unfinished character; the number of ids it is all of, or 0."""
        ids = self._window
        text = self._decode(ids)
        if not text.endswith(UNFINISHED):
            return text, len(ids)
        whole = text.rstrip(UNFINISHED)
        for end in range(len(ids) - 1, max(0, len(ids) - MAX_CHARACTER), -1):
            shorter = self._decode(ids[:end])  # to some decoders one bad byte spoils all bytes around it
            if not shorter.endswith(UNFINISHED):
                return (shorter, end) if len(shorter) >= len(whole) else (whole, 0)
        if self._waited > MAX_WAIT_TOK:
            # What began before the last three ids has ended, or is no character.
            end = len(ids) - (MAX_CHARACTER - 1)
            return text[: len(self._decode(ids[:end]))], end
        return whole, 0

    def _slide(self, end: int) -> None:
        """Moves the window forward after a character ended at `end`.

        Some ids stay as context, since some decoders treat the first id of a text differently.
        """
        if self._whole >= CONTEXT_TOK:
            del self._window[: self._whole]
            end -= self._whole
            self._seen = len(self._decode(self._window[:end]))
        self._whole = end

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


def _context(decode: Decode, prompt: Sequence[int]) -> tuple[list[int], str]:
    """The last ids of a prompt and their text; none if they are no text or end inside a character."""
    context = list(prompt[-CONTEXT_TOK:])
    try:
        text = decode(context) if context else ""
    except Exception:  # ids that somebody else made up; what is produced may still be text
        return [], ""
    return ([], "") if text.endswith(UNFINISHED) else (context, text)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
