"""The states of a battle, without storage or network.

NEW -> ANSWERED (every side has shown something or ended) -> VOTED; the vote reveals the names, in one step.
"""

from dataclasses import dataclass, replace

NEW, ANSWERED, VOTED = "new", "answered", "voted"
WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")
MAX_TURNS = 10


class Refused(Exception):
    """A step that the state does not allow. `status` is the HTTP status."""

    def __init__(self, why: str, status: int = 409):
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class BattleState:
    """Where a battle stands: number of turns asked, what each side shows, and the vote.

    Attributes:
      shown: for each side, whether the current turn's answer has text or has ended.
      ended: for each side, whether the current turn's answer is complete, stopped or broken off.
      winner: one of WINNERS, or None before the vote.
    """

    turns: int = 1
    shown: tuple[bool, ...] = (False, False)
    ended: tuple[bool, ...] = (False, False)
    winner: str | None = None

    @property
    def name(self) -> str:
        if self.winner is not None:
            return VOTED
        return ANSWERED if all(self.shown) else NEW

    def show(self, side: int) -> "BattleState":
        """Side `side` has text on the page."""
        return replace(self, shown=_with(self.shown, side))

    def end(self, side: int) -> "BattleState":
        """Side `side` will say no more this turn, whatever the reason."""
        return replace(self, shown=_with(self.shown, side), ended=_with(self.ended, side))

    def ask(self) -> "BattleState":
        """A further turn.

        Raises:
          Refused: after the vote, before the answers have ended, or beyond MAX_TURNS.
        """
        if self.winner is not None:
            raise Refused("this battle has been voted on; start a new one")
        if not all(self.ended):
            raise Refused("wait for both answers, or stop them, before the next message")
        if self.turns >= MAX_TURNS:
            raise Refused(f"a battle has at most {MAX_TURNS} turns")
        sides = (False,) * len(self.shown)
        return BattleState(self.turns + 1, sides, sides)

    def again(self) -> "BattleState":
        """The last turn once more, answers anew.

        Raises:
          Refused: after the vote, or before the answers have ended.
        """
        if self.winner is not None:
            raise Refused("this battle has been voted on; start a new one")
        if not all(self.ended):
            raise Refused("wait for both answers, or stop them, before asking for new ones")
        sides = (False,) * len(self.shown)
        return BattleState(self.turns, sides, sides)

    def vote(self, winner: str) -> "BattleState":
        """The one vote.

        Raises:
          Refused: unknown winner (400), nothing to judge yet, or a vote before (409).
        """
        if winner not in WINNERS:
            raise Refused(f"{winner!r:.80} is not one of {', '.join(WINNERS)}", 400)
        if self.winner is not None:
            raise Refused(f"this battle has its vote: {self.winner}")
        if not all(self.shown):
            raise Refused("there is nothing to judge yet; wait for both answers to start")
        return replace(self, winner=winner)


def _with(flags: tuple[bool, ...], side: int) -> tuple[bool, ...]:
    return tuple(flag or i == side for i, flag in enumerate(flags))
