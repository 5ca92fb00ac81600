"""The prompts that residents send to a language model, and a parser that accepts any answer."""

import re
from typing import Any

from serving.metropolis.town.people import Person
from serving.metropolis.town.town_map import TownMap
from serving.metropolis.town.world import SeenResident, TownView, step_at, time_of_day


def _who(person: Person) -> str:
    return f"You are {person.name}, who {person.about}. You live in a small town."


def plan(person: Person, town_map: TownMap, step: int) -> str:
    places = ", ".join(place.name for place in town_map.places)
    return (
        f"Task: plan\n{_who(person)} It is {time_of_day(step)}. Places: {places}.\n"
        "Write your day as 6 to 9 lines, each 'HH:MM Place: what you do there', in order.\n"
    )


def parse_plan(text: str, town_map: TownMap) -> list[list[Any]]:
    """[step, place, activity] by time; lines without a valid time or a known place are skipped."""
    plan = []
    for hour, minute, rest in re.findall(r"(\d{1,2}):(\d{2})\s*[-–]?\s*(.+)", text):
        place = next((p.name for p in town_map.places if p.name.lower() in rest.lower()), None)
        if place is not None and int(hour) < 24 and int(minute) < 60:
            activity = rest.split(":", 1)[-1].strip()[:60]
            plan.append([step_at(int(hour), int(minute)), place, activity])
    return sorted(plan)[:12]


def default_plan(step: int) -> list[list[Any]]:
    """The plan of a resident whose model gave no usable answer."""
    return [[step + 30, "Park", "strolling"], [step + 400, "Café Linden", "having a coffee"]]


def activity(person: Person, view: TownView, mind: dict[str, Any], step: int) -> str:
    return (
        f"Task: activity\n{_who(person)} It is {time_of_day(step)}, you have come to {view.place}"
        f" for: {mind['doing']}.\nIn at most six words: what do you do now?\n"
    )


def decide(person: Person, other: SeenResident, view: TownView, mind: dict[str, Any]) -> str:
    return (
        f"Task: decide\n{_who(person)} At {view.place} you see {other.name}, {other.doing}.\n"
        f"{_memories(mind)}"
        "Do you start a conversation? Answer yes or no.\n"
    )


def say(person: Person, talk: dict[str, Any], view: TownView, mind: dict[str, Any], *, last: bool) -> str:
    said = "\n".join(talk["lines"]) or "(nobody has spoken yet)"
    end = " Say goodbye." if last else ""
    return (
        f"Task: say\n{_who(person)} You talk with {talk['with']} at {view.place}.\n{_memories(mind)}"
        f"So far:\n{said}\nYour next line, one sentence.{end}\n"
    )


def takeaway(person: Person, talk: dict[str, Any]) -> str:
    said = "\n".join(talk["lines"])
    return (
        f"Task: takeaway\n{_who(person)} You talked with {talk['with']}:\n{said}\n"
        "How much did it matter, 1 to 10, and what stays in mind? Answer '<number> <one sentence>'.\n"
    )


def reflect(person: Person, mind: dict[str, Any]) -> str:
    return f"Task: reflect\n{_who(person)}\n{_memories(mind, 12)}What do you conclude? One sentence.\n"


def _memories(mind: dict[str, Any], max_memories: int = 5) -> str:
    """The most important memories, newest last."""
    best = sorted(sorted(mind["memory"], key=lambda m: (-m[2], -m[0]))[:max_memories])
    return "".join(f"You remember: {text}.\n" for _, text, _ in best)
