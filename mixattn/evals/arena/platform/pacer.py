"""One pacer for every answer on the page: both sides of a battle advance together, at one speed.

A side's own speed would tell models apart. So the page shows `position` characters of each side, and position
advances only while every side that has not ended has text beyond it. A side that ended early just stops.
"""

import asyncio
import itertools
from dataclasses import dataclass, field

TICK_S = 0.1
CHARACTERS = 24  # a tick; 240 characters a second
SLICES = 10  # turns advance at different moments of a tick, so that a vote never waits for all of them
HEARTBEAT_S = 15.0


@dataclass
class LiveTurn:
    """The answers being written in one turn of a battle: text so far, ended or not, and what is shown."""

    texts: list[str]
    ended: list[bool]
    position: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: int = 0  # ticks since the last announcement

    def shown(self, side: int) -> str:
        return self.texts[side][: self.position]

    @property
    def complete(self) -> bool:
        return all(self.ended) and self.position >= max(map(len, self.texts))

    def hurry(self) -> None:
        """Shows everything, as after a stop or a vote."""
        self.position = max(self.position, *map(len, self.texts))
        self.announce()

    def announce(self) -> None:
        """Wakes the tasks that wait for a change."""
        self.quiet = 0
        self.changed.set()
        self.changed = asyncio.Event()


def advance(lengths: list[int], ended: list[bool], position: int, step: int) -> int:
    """The next position: not beyond the text of a side still writing, nor beyond the longest text."""
    writing = [length for length, done in zip(lengths, ended) if not done]
    return max(position, min([position + step, *(writing or [max(lengths)])]))


class Pacer:
    """Advances all live turns, every TICK_S, a slice of them at a time."""

    def __init__(self, tick_s: float = TICK_S, characters: int = CHARACTERS):
        self._tick_s, self._characters = tick_s, characters
        self._slices: list[dict[int, LiveTurn]] = [{} for _ in range(SLICES)]
        self._next = itertools.cycle(self._slices)

    def add(self, turn: LiveTurn) -> None:
        min(self._slices, key=len)[id(turn)] = turn

    def tick(self) -> None:
        """One step of every turn; complete ones leave."""
        for turns in self._slices:
            self._advance(turns)

    def _advance(self, turns: dict[int, LiveTurn]) -> None:
        for key, turn in list(turns.items()):
            ahead = advance([len(t) for t in turn.texts], turn.ended, turn.position, self._characters)
            turn.quiet += 1
            if ahead != turn.position or turn.complete or turn.quiet * self._tick_s >= HEARTBEAT_S:
                turn.position = ahead
                turn.announce()
            if turn.complete:
                del turns[key]

    async def run(self) -> None:
        clock = asyncio.get_running_loop()
        due_s = clock.time()
        while True:
            due_s = max(due_s + self._tick_s / SLICES, clock.time())
            await asyncio.sleep(due_s - clock.time())
            self._advance(next(self._next))
