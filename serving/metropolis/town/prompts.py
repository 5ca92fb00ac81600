"""What residents ask a language model, and how its answers are read. Any model may answer anything."""

import re
from typing import Any

from serving.metropolis.town.day import START_HOUR, clock, step_at
from serving.metropolis.town.people import Person
from serving.metropolis.town.streets import Streets
from serving.metropolis.town.world import Sight, Sighting
from serving.metropolis.world import stable_hash


def _who(person: Person) -> str:
    return f"You are {person.name}, who {person.about}. You live in a small town."


def plan(person: Person, streets: Streets, step: int) -> str:
    places = ", ".join(place.name for place in streets.places)
    return (
        f"Task: plan\n{_who(person)} It is {clock(step)}. Places: {places}.\n"
        "Write your day as 6 to 9 lines, each 'HH:MM Place: what you do there', in order.\n"
    )


def read_plan(text: str, streets: Streets) -> list[list[Any]]:
    """[step, place, what] by time; lines that name no time or no known place are skipped."""
    plan = []
    for hour, minute, rest in re.findall(r"(\d{1,2}):(\d{2})\s*[-–]?\s*(.+)", text):
        place = next((p.name for p in streets.places if p.name.lower() in rest.lower()), None)
        if place is not None and int(hour) < 24 and int(minute) < 60:
            what = rest.split(":", 1)[-1].strip()[:60]
            plan.append([step_at(int(hour), int(minute)), place, what])
    return sorted(plan)[:12]


def plan_without_model(person: Person, step: int) -> list[list[Any]]:
    """A plain day for someone whose model did not answer."""
    return [[step + 30, "Park", "strolling"], [step + 400, "Café Linden", "having a coffee"]]


def activity(person: Person, view: Sight, mind: dict[str, Any], step: int) -> str:
    return (
        f"Task: activity\n{_who(person)} It is {clock(step)}, you have come to {view.place}"
        f" for: {mind['doing']}.\nIn at most six words: what do you do now?\n"
    )


def decide(person: Person, other: Sighting, view: Sight, mind: dict[str, Any], step: int) -> str:
    return (
        f"Task: decide\n{_who(person)} At {view.place} you see {other.name}, {other.doing}.\n"
        f"{_memories(mind)}"
        "Do you start a conversation? Answer yes or no.\n"
    )


def say(
    person: Person, talk: dict[str, Any], view: Sight, mind: dict[str, Any], step: int, *, last: bool
) -> str:
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


def _memories(mind: dict[str, Any], most: int = 5) -> str:
    """The most important of what is remembered, newest last."""
    best = sorted(sorted(mind["memory"], key=lambda m: (-m[2], -m[0]))[:most])
    return "".join(f"You remember: {text}.\n" for _, text, _ in best)


# ---- a stub that speaks ------------------------------------------------------------------------------------
_PLACES = ("Café Linden", "Library", "Market", "Workshop", "School", "Park")
_DOES = {
    "Café Linden": ("sips coffee by the window", "reads the paper", "tries the plum cake"),
    "Library": ("browses old maps", "copies a poem", "looks for a quiet corner"),
    "Market": ("picks apples", "haggles over radishes", "smells the herbs"),
    "Workshop": ("sands a plank", "oils a squeaky gear", "sketches a boat"),
    "School": ("draws on the blackboard", "waters the beans", "tidies the shelves"),
    "Park": ("feeds the ducks", "watches the pond", "rests under the linden"),
}
_OPENERS = ("Good to see you, {}!", "{}, have you heard about the fair?", "Lovely light today, {}.")
_LINES = (
    "I keep thinking about the pond; it was so still this morning.",
    "Lea wants us all to help with the summer fair.",
    "The café has plum cake again, go before noon.",
    "I found a map that shows a street nobody remembers.",
    "Would you walk a round of the park with me later?",
    "My project needs an idea; what would you build?",
)
_PARTING = ("I have to go, see you later!", "That was nice, goodbye!")


def reply(prompt: Any, seed: int | None = 0) -> str:
    """What the stub answers: plain, deterministic, and of the shape that was asked for."""
    text = str(prompt)
    task = text.split("\n", 1)[0].removeprefix("Task: ")
    draw = stable_hash(text, seed or 0)
    match task:
        case "plan":
            return _a_plan(text, draw)
        case "activity":
            place = next((p for p in _PLACES if f"come to {p}" in text), "")
            return _pick(_DOES.get(place, ("tidies up", "waters the plants", "writes a letter")), draw)
        case "decide":
            return "yes" if draw % 100 < 55 else "no"
        case "say":
            if "Say goodbye" in text:
                return _pick(_PARTING, draw)
            if "(nobody has spoken yet)" in text:
                name = re.search(r"You talk with (\S+)", text)
                return _pick(_OPENERS, draw).format(name[1] if name else "friend")
            return _pick(_LINES, draw)
        case "takeaway":
            return (
                f"{2 + draw % 6} {_pick(('the fair needs helpers', 'a good talk', 'a new idea'), draw >> 8)}"
            )
        case "reflect":
            return _pick(("I should say yes more often.", "The park brings people together."), draw)
    return "All right."


def _a_plan(text: str, draw: int) -> str:
    start = re.search(r"It is (\d+):(\d+)", text)
    now = (int(start[1]) * 60 + int(start[2]) if start else START_HOUR * 60) + 2
    lines = []
    for i in range(8):
        place = _pick(_PLACES, stable_hash(draw, i))
        lines.append(
            f"{now // 60 % 24:02}:{now % 60:02} {place}: {_pick(_DOES[place], stable_hash(draw, i, 'does'))}"
        )
        now += 6 + stable_hash(draw, i, "stays") % 25
    return "\n".join(lines)


def _pick(choices: Any, draw: int) -> str:
    return choices[draw % len(choices)]
