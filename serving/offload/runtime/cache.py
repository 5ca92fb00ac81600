"""Which experts stay in a fixed number of slots: least recently used, or least used of late. Pure; no jax.

An expert that the running layer still needs is never evicted. A layer that needs more experts than there are
slots takes them one after the other: each is read at most once, and its slot is free as soon as its rows are
computed.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

HALF_LIFE = 64  # uses of the cache after which an older use counts half
POLICIES = ("lru", "frequency")

type At = tuple[int, int]  # layer and expert


@dataclass
class CacheCounts:
    """Experts found in their slots, read when they were asked for, and evicted; and those that were read as a
    guess, and how many of these were asked for next."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    guesses: int = 0
    right_guesses: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


@dataclass
class _Entry:
    slot: int
    last: int = 0
    weight: float = 0.0


@dataclass
class ExpertCache:
    """Slots and who has them. Two threads may share it: one takes slots, the other frees them.

    Attributes:
      slots: how many there are.
      policy: one of `POLICIES`.
    """

    slots: int
    policy: str = "lru"
    counts: CacheCounts = field(default_factory=CacheCounts)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"unknown cache policy {self.policy!r}; known: {', '.join(POLICIES)}")
        if self.slots < 1:
            raise ValueError(f"a cache of {self.slots} experts; it needs at least 1")
        self._free = list(range(self.slots))
        self._entries: dict[At, _Entry] = {}
        self._pinned: set[At] = set()
        self._guessed: set[At] = set()  # read, but not asked for yet
        self._expected: set[At] = set()  # these, and those that were there already
        self._clock = 0
        self._changed = threading.Condition()
        self._stopped = False

    def __contains__(self, at: At) -> bool:
        return at in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def slot(self, at: At) -> int:
        """Where an expert is."""
        return self._entries[at].slot

    def begin(self, needed: Iterable[At]) -> tuple[list[At], list[At]]:
        """A layer needs these: those that are there, which stay until `done`, and those to be taken."""
        with self._changed:
            hits: list[At] = []
            misses: list[At] = []
            self._pinned -= self._expected
            for at in needed:
                self.counts.right_guesses += at in self._guessed
                (hits if at in self._entries else misses).append(at)
            for at in hits:
                self._pinned.add(at)
                self._use(at)
            self.counts.hits += len(hits)
            self.counts.misses += len(misses)
            self._stopped = False
            self._guessed, self._expected = set(), set()
            return hits, misses

    def guess(self, at: At) -> int | None:
        """A slot for an expert that may be asked for next, and stays until then; None if it is there already,
        or if all the others are needed. If it is not asked for it is the first to go."""
        with self._changed:
            if at not in self._entries and not self._free and self._victim() is None:
                return None
            self._expected.add(at)
            if at in self._entries:
                self._pinned.add(at)
                return None
            self._make_free(1)
            slot = self._free.pop()
            self._entries[at] = _Entry(slot)
            self._pinned.add(at)
            self._guessed.add(at)
            self.counts.guesses += 1
            return slot

    def take(self, at: At) -> int | None:
        """A slot for an expert that will be read, which stays until `done`; waits until one may be evicted.

        None after `stop`.
        """
        with self._changed:
            while not self._stopped and not self._free and self._victim() is None:
                self._changed.wait()
            if self._stopped:
                return None
            self._make_free(1)
            slot = self._free.pop()
            self._entries[at] = _Entry(slot)
            self._pinned.add(at)
            self._use(at)
            return slot

    def done(self, at: At) -> None:
        """Its rows are computed: it may be evicted."""
        with self._changed:
            self._pinned.discard(at)
            self._changed.notify_all()

    def stop(self) -> None:
        """Wakes a thread that waits in `take`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def drop(self, at: At) -> None:
        """Forgets an expert whose read failed."""
        with self._changed:
            if (entry := self._entries.pop(at, None)) is not None:
                self._free.append(entry.slot)
            self._pinned.discard(at)
            self._guessed.discard(at)

    def lend(self, count: int) -> list[int]:
        """Takes `count` slots out of the cache, evicting what counts least; `give_back` returns them.

        Raises:
          ValueError: there are not so many.
        """
        if count > self.slots:
            raise ValueError(f"{count} slots are asked for; the cache has {self.slots}")
        with self._changed:
            self._pinned.clear()
            self._make_free(count)
            lent, self._free = self._free[:count], self._free[count:]
            return lent

    def give_back(self, slots: Iterable[int]) -> None:
        with self._changed:
            self._free += list(slots)

    def held(self) -> dict[At, int]:
        """All experts that are there, and their slots."""
        return {at: entry.slot for at, entry in self._entries.items()}

    def _make_free(self, count: int) -> None:
        """Evicts until so many slots are free."""
        while len(self._free) < count:
            victim = self._victim()
            assert victim is not None
            self._free.append(self._entries.pop(victim).slot)
            self.counts.evictions += 1

    def _use(self, at: At) -> None:
        self._clock += 1
        entry = self._entries[at]
        entry.weight = 1.0 + self._now(entry)
        entry.last = self._clock

    def _now(self, entry: _Entry) -> float:
        """Its uses so far, older ones counted less."""
        return entry.weight * 0.5 ** ((self._clock - entry.last) / HALF_LIFE)

    def _victim(self) -> At | None:
        """The expert that counts least of those that may go."""
        free = [at for at in self._entries if at not in self._pinned]
        if not free:
            return None
        if self.policy == "lru":
            return min(free, key=lambda at: self._entries[at].last)
        return min(free, key=lambda at: (self._now(self._entries[at]), self._entries[at].last))
