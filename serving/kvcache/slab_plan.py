"""What a request that leaves its pages for a slab needs of memory: the host's half of `mixattn.keep`."""

from dataclasses import dataclass

NEVER = 2**30  # a budget that is never reached, and a position from which no query votes


@dataclass(frozen=True)
class SlabPlan:
    """How one request's keys are cut.

    Attributes:
      scorer: its number among those compiled in.
      cut: by full owner, (heavy, recent, sinks) that its prompt is cut to.
      grows: whether the slab grows after the cut instead of evicting.
      history: whether every query of the prompt votes, so that a hit needs the scores at its end.
      last_queries: newest queries of the prompt that vote; a hit leaves them to be computed.
      exact: whether its final length fits, so that it never evicts and its slab stays in order.
    """

    scorer: int
    cut: tuple[tuple[int, int, int], ...]
    grows: bool = False
    history: bool = False
    last_queries: int = 0
    exact: bool = False

    @property
    def limits(self) -> tuple[tuple[int, int, int], ...]:
        """By full owner, what its steps evict to."""
        return tuple((NEVER, 1, 0) for _ in self.cut) if self.grows else self.cut

    @property
    def votes(self) -> bool:
        """Whether queries of the prompt vote."""
        return self.history or self.last_queries > 0

    def first_vote(self, prompt_tok: int) -> int:
        """The first position whose query votes."""
        if self.history:
            return 0
        return max(0, prompt_tok - self.last_queries) if self.last_queries else NEVER

    def evicted(self, prompt_tok: int, computed_tok: int) -> int:
        """Keys that each head has lost, summed over full owners, once `computed_tok` tokens are computed."""
        seen = prompt_tok if self.grows else computed_tok
        return sum(max(0, seen - sum(limits)) for limits in self.cut)
