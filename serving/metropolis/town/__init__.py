"""A small town of residents who plan, walk, meet, talk and reflect, each knowing only what is near.

`make_town(residents)` returns the world and its agents. Any `mixattn.evals.llm.LanguageModel` can answer for
them; `stub_model.reply` gives scripted answers.
"""

from serving.metropolis.town.people import PEOPLE
from serving.metropolis.town.residents import Resident
from serving.metropolis.town.world import Town, step_at, time_of_day
from serving.metropolis.world import AgentId


def make_town(residents: int = 12) -> tuple[Town, dict[AgentId, Resident]]:
    """The town with its first `residents` people (1 to 25), and an agent per person.

    Raises:
      ValueError: more people than the town has beds.
    """
    if not 1 <= residents <= len(PEOPLE):
        raise ValueError(f"residents is {residents}; the town has beds for 1 to {len(PEOPLE)}")
    world = Town([person.name for person in PEOPLE[:residents]])
    return world, {person.name: Resident(person, world.map) for person in PEOPLE[:residents]}


__all__ = ["PEOPLE", "Resident", "Town", "make_town", "step_at", "time_of_day"]
