"""Scripted answers to the town's prompts, for runs without a language model.

An answer depends only on the prompt and the seed.
"""

import re
from collections.abc import Sequence

from mixattn.evals.llm import Prompt
from serving.metropolis.town.world import START_HOUR
from serving.metropolis.world import stable_hash

_PLACES = ("Café Linden", "Library", "Market", "Workshop", "School", "Park")
_ACTIVITIES = {
    "Café Linden": ("sips coffee by the window", "reads the paper", "tries the plum cake"),
    "Library": ("browses old maps", "copies a poem", "looks for a quiet corner"),
    "Market": ("picks apples", "haggles over radishes", "smells the herbs"),
    "Workshop": ("sands a plank", "oils a squeaky gear", "sketches a boat"),
    "School": ("draws on the blackboard", "waters the beans", "tidies the shelves"),
    "Park": ("feeds the ducks", "watches the pond", "rests under the linden"),
}
_AT_HOME = ("tidies up", "waters the plants", "writes a letter")
_OPENERS = ("Good to see you, {}!", "{}, have you heard about the fair?", "Lovely light today, {}.")
_LINES = (
    "I keep thinking about the pond; it was so still this morning.",
    "Lea wants us all to help with the summer fair.",
    "The café has plum cake again, go before noon.",
    "I found a map that shows a street nobody remembers.",
    "Would you walk a round of the park with me later?",
    "My project needs an idea; what would you build?",
)
_GOODBYES = ("I have to go, see you later!", "That was nice, goodbye!")
_GISTS = ("the fair needs helpers", "a good talk", "a new idea")


def reply(prompt: Prompt, seed: int | None = 0) -> str:
    """A deterministic answer in the format that the prompt asks for.

    Args:
      prompt: text whose first line is "Task: <name>"; other tasks get a general answer.
      seed: of the call.
    """
    text = str(prompt)
    task = text.split("\n", 1)[0].removeprefix("Task: ")
    random_bits = stable_hash(text, seed or 0)
    match task:
        case "plan":
            return _day_plan(text, random_bits)
        case "activity":
            place = next((p for p in _PLACES if f"come to {p}" in text), "")
            return _pick(_ACTIVITIES.get(place, _AT_HOME), random_bits)
        case "decide":
            return "yes" if random_bits % 100 < 55 else "no"
        case "say":
            if "Say goodbye" in text:
                return _pick(_GOODBYES, random_bits)
            if "(nobody has spoken yet)" in text:
                name = re.search(r"You talk with (\S+)", text)
                return _pick(_OPENERS, random_bits).format(name[1] if name else "friend")
            return _pick(_LINES, random_bits)
        case "takeaway":
            return f"{2 + random_bits % 6} {_pick(_GISTS, random_bits >> 8)}"
        case "reflect":
            return _pick(("I should say yes more often.", "The park brings people together."), random_bits)
    return "All right."


def _day_plan(text: str, random_bits: int) -> str:
    start = re.search(r"It is (\d+):(\d+)", text)
    now = (int(start[1]) * 60 + int(start[2]) if start else START_HOUR * 60) + 2
    lines = []
    for i in range(8):
        place = _pick(_PLACES, stable_hash(random_bits, i))
        activity = _pick(_ACTIVITIES[place], stable_hash(random_bits, i, "does"))
        lines.append(f"{now // 60 % 24:02}:{now % 60:02} {place}: {activity}")
        now += 6 + stable_hash(random_bits, i, "stays") % 25
    return "\n".join(lines)


def _pick(choices: Sequence[str], random_bits: int) -> str:
    return choices[random_bits % len(choices)]
