"""One pacer for every answer on the page: both sides of a battle advance together, at one speed.

A side's own speed would tell models apart. So the page shows `position` characters of each side, and position
advances only while every side that has not ended has text beyond it. A side that ended early just stops.
"""

import asyncio
from dataclasses import dataclass, field

TICK_S = 0.1
CHARACTERS = 24  # a tick; 240 characters a second


@dataclass
class LiveTurn:
    """The answers being written in one turn of a battle: text so far, ended or not, and what is shown."""

    texts: list[str]
    ended: list[bool]
    position: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

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
        self.changed.set()
        self.changed = asyncio.Event()


def advance(lengths: list[int], ended: list[bool], position: int, step: int) -> int:
    """The next position: not beyond the text of a side still writing, nor beyond the longest text."""
    writing = [length for length, done in zip(lengths, ended) if not done]
    return max(position, min([position + step, *(writing or [max(lengths)])]))


class Pacer:
    """Advances all live turns, every TICK_S."""

    def __init__(self, tick_s: float = TICK_S, characters: int = CHARACTERS):
        self._tick_s, self._characters = tick_s, characters
        self._turns: dict[int, LiveTurn] = {}

    def add(self, turn: LiveTurn) -> None:
        self._turns[id(turn)] = turn

    def tick(self) -> None:
        """One step of every turn; complete ones leave."""
        for key, turn in list(self._turns.items()):
            ahead = advance([len(t) for t in turn.texts], turn.ended, turn.position, self._characters)
            if ahead != turn.position or turn.complete:
                turn.position = ahead
                turn.announce()
            if turn.complete:
                del self._turns[key]

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self.tick()
