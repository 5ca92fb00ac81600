"""A budget of keys, and how a row and a layer get their part of it.

Shares are exact fractions: a fifth of 200 keys is 40, whatever the nearest float of 0.2 is. All divisions
round down, and the arithmetic is the same for Python's integers and for arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from mixattn.keep.allocators import ALLOCATORS
from mixattn.keep.scorers import SCORERS, Scorer, made

type When = Literal["decode", "prompt"]
type Promotion = Literal["compete", "always"]
type Scope = Literal["all_consumers", "owner_only"]
type Positions = Literal["original", "rolling"]
type Prefill = Literal["exact", "blockwise"]
type ShareOf = Literal["prompt", "total"]
FINEST_SHARE = 10_000  # shares are multiples of this part
CHOICES = {
    name: get_args(kind.__value__)
    for name, kind in (
        ("when", When),
        ("promotion", Promotion),
        ("scope", Scope),
        ("positions", Positions),
        ("prefill", Prefill),
        ("share_of", ShareOf),
    )
}


@dataclass(frozen=True)
class Keep:
    """Which keys survive, per layer and key/value head.

    Attributes:
      scorer: name of what ranks keys; see `mixattn.keep.SCORERS`.
      budget: keys (int), or a share in (0, 1] (float) of what `share_of` names.
      share_of: the prompt, as in H2O's accuracy figures, or prompt and `max_new_tokens`, as in its throughput
        figures.
      recent: newest keys that are never evicted: keys (int), or a share of the budget (float).
      sinks: first positions that are never evicted; None = the scorer's own number.
      when: evict in every step, or cut the prompt once and grow from there.
      promotion: whether a key that leaves the recent ones competes by its score or always replaces a heavy
        one.
      scope: whose queries vote on a shared cache: all layers that read it, or its owner.
      positions: keys keep their positions, or are rotated by their rank among the survivors (streaming).
      allocation: how layers share the budget; see `mixattn.keep.allocators`.
      prefill: the prompt is computed with full attention and then cut, or block by block with a cut after
        each ("blockwise": another algorithm, whose peak is the budget and a block).
      block: tokens of a block, for "blockwise".
      window, pool: queries that SnapKV observes, and keys over which it averages (odd).
      seed: of the scorer "random".
    """

    scorer: str = "h2o"
    budget: int | float = 0.2
    share_of: ShareOf = "prompt"
    recent: int | float = 0.5
    sinks: int | None = None
    when: When = "decode"
    promotion: Promotion = "compete"
    scope: Scope = "all_consumers"
    positions: Positions = "original"
    allocation: str = "uniform"
    prefill: Prefill = "exact"
    block: int = 256
    window: int = 32
    pool: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer {self.scorer!r} is not one of {', '.join(SCORERS)}")
        if self.allocation not in ALLOCATORS:
            raise ValueError(f"allocation {self.allocation!r} is not one of {', '.join(ALLOCATORS)}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        _check_amount("budget", self.budget)
        _check_amount("recent", self.recent)
        for name, least in (("sinks", 0), ("block", 1), ("window", 1), ("pool", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.pool % 2 == 0:
            raise ValueError(f"pool is {self.pool}; an average around a key needs an odd number of keys")
        scorer = SCORERS[self.scorer]
        if self.sinks is None:
            object.__setattr__(self, "sinks", scorer.default_sinks)
        if self.when == "decode" and not scorer.decodes:
            raise ValueError(
                f'the scorer {self.scorer} scores a prompt once and cannot rank new keys; use when="prompt"'
            )
        if isinstance(self.budget, int):
            self.check_total(self.budget, "the budget")
            if isinstance(self.recent, int) and self._sinks + self.recent > self.budget:
                raise ValueError(
                    f"the budget is {self.budget} keys; {self._sinks} sinks and the {self.recent} recent keys"
                    f" need {self._sinks + self.recent}"
                )
        if self.prefill == "blockwise" and (self.when == "prompt" or not scorer.decodes):
            raise ValueError('prefill="blockwise" evicts after every block; it needs when="decode"')

    @property
    def ranking(self) -> Scorer:
        """The scorer, with what it takes of these settings."""
        return made(SCORERS[self.scorer], **vars(self))

    def total(self, prompt: Any, new: int) -> Any:
        """Keys of a row before layers share them: ints, or int32 [B] if `prompt` is."""
        if isinstance(self.budget, int):
            return prompt * 0 + self.budget
        return part(prompt + (new if self.share_of == "total" else 0), _share(self.budget))

    def layer_total(self, total: Any, index: int, layers: int) -> Any:
        """Keys of the `index`-th of `layers` full owners."""
        return part(total, ALLOCATORS[self.allocation](index, layers))

    def split(self, total: Any) -> tuple[Any, Any, Any]:
        """(heavy, recent, sinks) of a layer's total, which has room for all sinks and one key more.

        Where a share or a layer's part has no room for all recent keys, the recent ones are fewer.
        """
        room = total - self._sinks
        wanted = self._wanted_recent(total)
        recent = max(1, min(wanted, room)) if isinstance(total, int) else wanted.clip(1, room)
        return room - recent, recent, total * 0 + self._sinks

    def check_rows(self, prompts: Sequence[int], new: int, layers: int) -> None:
        """Raises ValueError if some prompt's budget is nothing, or holds no key beside the sinks.

        Args:
          prompts: their lengths. new: tokens to be generated. layers: full owners of the model.
        """
        if layers == 0:
            raise ValueError(
                "the model has no layer with full attention that owns K/V; there is nothing to evict"
            )
        shortest = min(prompts)
        total = self.total(shortest, new)
        least = min(self.layer_total(total, i, layers) for i in range(layers))
        where = (
            f"{self.budget} of a prompt of {shortest} tokens"
            if isinstance(self.budget, float)
            else "the budget"
        )
        self.check_total(least, where)

    def most(self, prompt: int, new: int, index: int, layers: int) -> int:
        """The most keys that a row holds after a step, of prompts of at most `prompt` tokens."""
        total: int = self.layer_total(self.total(prompt, new), index, layers)
        return min(total, prompt + new) if self.when == "decode" else min(total, prompt) + new

    def slots(self, prompt: int, new: int, index: int, layers: int) -> int:
        """Keys per key/value head that a cache has room for: `most`, and the tokens of a step."""
        return self.most(prompt, new, index, layers) + (self.block if self.prefill == "blockwise" else 1)

    @property
    def _sinks(self) -> int:
        return self.sinks or 0

    def _wanted_recent(self, total: Any) -> Any:
        protected = self.ranking.protects
        recent = total * 0 + self.recent if isinstance(self.recent, int) else part(total, _share(self.recent))
        return max(recent, protected) if isinstance(recent, int) else recent.clip(protected)

    def check_total(self, total: int, where: str) -> None:
        """Raises ValueError if `total` keys, named by `where`, hold no key beside the sinks, or no window."""
        if total < self._sinks + 1:
            raise ValueError(
                f"{where} is {total} keys, and {self._sinks} sinks and a recent key need {self._sinks + 1}"
            )
        if (observed := self.ranking.protects) > total:
            raise ValueError(
                f"{where} is {total} keys, fewer than the {observed} queries that {self.scorer} observes"
            )


def part(n: Any, share: Fraction) -> Any:
    """floor(n * share) without overflow in int32."""
    return (
        n // share.denominator * share.numerator
        + n % share.denominator * share.numerator // share.denominator
    )


def _share(value: float) -> Fraction:
    return Fraction(value).limit_denominator(FINEST_SHARE)


def _check_amount(name: str, value: int | float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}; it must be a number of keys (int) or a share (float)")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name} is {value} keys; at least 1 is needed")
    if isinstance(value, float) and not 1 / FINEST_SHARE <= value <= 1:
        raise ValueError(f"{name} is a share of {value}; it must lie in [{1 / FINEST_SHARE}, 1]")
