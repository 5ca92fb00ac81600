"""Renders a town's commit log as one self-contained HTML file.

Text written by a model is embedded as JSON in a script element, with every '<' escaped, and is shown as text,
never as markup. The page loads no other resource.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from mixattn.tools.files import write_text
from serving.metropolis.runtime.store import Store
from serving.metropolis.schedule.rules import in_place
from serving.metropolis.town import PEOPLE, make_town, time_of_day
from serving.metropolis.town.town_map import HEIGHT, WATER, WIDTH
from serving.metropolis.town.world import REACH


def write(store: Store, out: Path) -> int:
    """Writes the page atomically; returns the number of commits in it.

    Raises:
      ValueError: the log is empty.
    """
    data = collect(store)
    if not data["commits"]:
        raise ValueError("the log holds no commits; run the town first")
    template = resources.files("serving.metropolis.runtime").joinpath("replay.html").read_text()
    write_text(out, template.replace("__DATA__", embed(data)))
    return len(data["commits"])


def embed(data: Any) -> str:
    """Returns `data` as JSON that is safe inside a script element, for any strings in it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def collect(store: Store) -> dict[str, Any]:
    """Returns the page's data: the map, the residents, and the log as short rows."""
    about = store.about()
    world, _ = make_town(about["residents"])
    bodies = world.reset(about["seed"])
    names = sorted(bodies)
    number = {name: i for i, name in enumerate(names)}
    margin = in_place(REACH, REACH)
    commits: list[Any] = []
    for c in store.commits():
        moves = [[number[n], *pos] for n, pos in c.outcome.moves.items()]
        looks = [[number[n], look] for n, _, look in c.outcome.writes]
        still = [[number[n], until] for n, until in c.still]
        members = [number[n] for n in c.members]
        start, end = round(c.start_s, 3), round(c.end_s, 3)
        commits.append([c.step, members, moves, looks, still, start, end, c.calls])
    last = max((c[0] for c in commits), default=0) + 1
    return {
        "mode": about["mode"],
        "seed": about["seed"],
        "names": names,
        "about": [next(p.about for p in PEOPLE if p.name == n) for n in names],
        "start": [list(bodies[n].pos) for n in names],
        "width": WIDTH,
        "height": HEIGHT,
        "walls": [list(t) for t in sorted(world.map.blocked - WATER)],
        "water": [list(t) for t in sorted(WATER)],
        "places": [[p.name, p.kind, p.x, p.y, p.width, p.height] for p in world.map.places],
        "perceive": REACH.perceive,
        "rule": {"block": margin.block, "still": margin.still, "move": REACH.move},
        "clock": [time_of_day(s) for s in range(last + 1)],
        "commits": commits,
    }
