"""A small town of residents who plan, walk, notice, talk and reflect, each knowing only what is near.

`make_town(residents)` gives the world and its agents; any `mixattn.evals.llm.LanguageModel` speaks for them, and
`stub.reply` does where there is none.
"""

from collections.abc import Mapping

from serving.metropolis.town.day import time_of_day, step_at
from serving.metropolis.town.people import PEOPLE
from serving.metropolis.town.residents import Resident
from serving.metropolis.town.world import Town
from serving.metropolis.world import AgentId


def make_town(residents: int = 12) -> tuple[Town, Mapping[AgentId, Resident]]:
    """The town with its first `residents` people (1 to 25).

    Raises:
      ValueError: more people than the town has beds.
    """
    if not 1 <= residents <= len(PEOPLE):
        raise ValueError(f"residents is {residents}; the town has beds for 1 to {len(PEOPLE)}")
    names = [person.name for person in PEOPLE[:residents]]
    world = Town(names)
    return world, {p.name: Resident(p, world.map, names) for p in PEOPLE[:residents]}


__all__ = ["PEOPLE", "Resident", "Town", "time_of_day", "step_at", "make_town"]
