"""What one running request holds of the KV cache."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from serving.kvcache.radix_node import PrefixLock
from serving.kvcache.reservation import Reservation
from serving.kvcache.vote_rows import SequenceVotes


@dataclass(eq=False, slots=True)
class SequencePages:
    """Pages of one running request.

    Attributes:
      slot: row of the page tables.
      lock: its lock in the tree; pages before the lock's end are the tree's.
      prefill_tok: tokens it computes in chunks.
      pages: by group, logical page -> physical page; NULL_PAGE where it is no longer needed.
      first: by group, the first logical page it still needs; all before are NULL_PAGE, none from it on is.
      reservations: by group, how many pages it holds, and may hold.
      capacity_tok: up to how many tokens its page tables need not grow.
      next_release_tok: up to how many computed tokens no page can be released.
      votes: while its prompt is computed, if its queries vote.
      settled: it has a slab and no full pages.
    """

    slot: int
    lock: PrefixLock
    prefill_tok: int
    cache_salt: Hashable
    pages: list[list[int]]
    first: list[int]
    reservations: list[Reservation] = field(default_factory=list)
    capacity_tok: float = 0
    next_release_tok: float = 0
    votes: SequenceVotes | None = None
    settled: bool = False


@dataclass(frozen=True)
class Settlement:
    """Pages of a request when it was settled; some may be other requests' in the same step.

    Attributes:
      slot: whose slab it gets.
      table: its row of the full pool's page table.
      votes_row: the row of its votes; 0 = none.
      moves: by group, pages that are copied to pages of its own, (from, to).
    """

    slot: int
    table: np.ndarray
    votes_row: int
    moves: list[list[tuple[int, int]]]
