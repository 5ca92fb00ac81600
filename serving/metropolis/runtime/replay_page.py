"""Renders the commit log of a town, or of any other world in the plane, as one self-contained HTML file.

Text written by a model is embedded as JSON in a script element, with every '<' escaped, and is shown as text,
never as markup. The page loads no other resource.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from mixattn.tools.files import write_text
from serving.metropolis.runtime.recovery import bodies_at_start
from serving.metropolis.runtime.store import Commit, Store
from serving.metropolis.schedule.rules import in_place
from serving.metropolis.town import PEOPLE, make_town, time_of_day
from serving.metropolis.town.town_map import HEIGHT, WATER, WIDTH
from serving.metropolis.town.world import REACH, Town

_TILES = 40  # the longer side of a world that is not the town


def write(store: Store, out: Path) -> int:
    """Writes the page atomically; returns the number of commits in it.

    Raises:
      ValueError: the log is empty.
    """
    data = collect(store)
    if not data["commits"]:
        raise ValueError("the log holds no commits; run the simulation first")
    template = resources.files("serving.metropolis.runtime").joinpath("replay.html").read_text()
    write_text(out, template.replace("__DATA__", embed(data)))
    return len(data["commits"])


def embed(data: Any) -> str:
    """Returns `data` as JSON that is safe inside a script element, for any strings in it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def collect(store: Store) -> dict[str, Any]:
    """Returns the page's data: the map, the agents, and the log as short rows.

    Raises:
      ValueError: the positions are no pairs of numbers.
    """
    about = store.about()
    commits = list(store.commits())
    births = [(k, birth) for k, c in enumerate(commits) for birth in c.outcome.births]
    if "residents" in about:
        world, _ = make_town(about["residents"])
        bodies = dict(world.reset(about["seed"]))
        scenery = _town(world, sorted(bodies))
        scale = Scale(0, 0, 1)
    else:
        bodies = bodies_at_start(about) if "start" in about else {}
        bodies |= {birth.id: birth.body for _, birth in births}
        scale = Scale.of([body.pos for body in bodies.values()] + _visited(commits))
        scenery = {"about": [""] * len(bodies), "walls": [], "water": [], "places": []}
        scenery |= {"width": _TILES + 1, "height": _TILES + 1}
    names = sorted(bodies)
    number = {name: i for i, name in enumerate(names)}
    reach = max((body.reach for body in bodies.values()), key=lambda r: r.perceive, default=REACH)
    margin = in_place(reach, reach)
    last = max((c.step for c in commits), default=0) + 1
    return {
        "mode": about["mode"],
        "seed": about["seed"],
        "names": names,
        "start": [scale.place(bodies[n].pos) for n in names],
        "born": [next((k + 1 for k, birth in births if birth.id == n), 0) for n in names],
        "died": [next((k + 1 for k, c in enumerate(commits) if n in c.outcome.deaths), -1) for n in names],
        "perceive": reach.perceive * scale.factor,
        "metric": about.get("metric", "chebyshev"),
        "rule": {
            name: value * scale.factor
            for name, value in (("block", margin.block), ("still", margin.still), ("move", reach.move))
        },
        "clock": [time_of_day(s) if "residents" in about else "" for s in range(last + 1)],
        "commits": [_row(c, number, scale) for c in commits],
        **scenery,
    }


class Scale(NamedTuple):
    """Brings the positions of a world onto the tiles of the page."""

    left: float
    top: float
    factor: float

    @classmethod
    def of(cls, positions: list[Any]) -> "Scale":
        try:
            xs, ys = zip(*[(float(x), float(y)) for x, y in positions])
        except (TypeError, ValueError) as why:
            raise ValueError(
                "the positions of this world are no pairs of numbers; they cannot be drawn"
            ) from why
        span = max(max(xs) - min(xs), max(ys) - min(ys))
        return cls(min(xs), min(ys), _TILES / span if span else 1.0)

    def place(self, pos: Any) -> list[float]:
        x, y = ((pos[0] - self.left) * self.factor, (pos[1] - self.top) * self.factor)
        return [round(x, 2), round(y, 2)] if self.factor != 1 else [x, y]


def _visited(commits: list[Commit]) -> list[Any]:
    return [pos for c in commits for pos in c.outcome.moves.values()]


def _row(c: Commit, number: dict[str, int], scale: Scale) -> list[Any]:
    moves = [[number[n], *scale.place(pos)] for n, pos in c.outcome.moves.items()]
    looks = [[number[n], _look(value, c.step)] for n, _, value in c.outcome.writes]
    still = [[number[n], until] for n, until in c.still]
    members = [number[n] for n in c.members]
    return [c.step, members, moves, looks, still, round(c.start_s, 3), round(c.end_s, 3), c.calls]


def _look(value: Any, step: int) -> dict[str, Any]:
    """What an agent's write says of it: its words if it has the town's fields, else the value in short."""
    if isinstance(value, dict) and {"doing", "said"} & set(value):
        words = {name: str(value[name]) for name in ("doing", "said", "to") if name in value}
        return {**words, "at": value.get("at", step)}
    text = value if isinstance(value, str) else json.dumps(value)
    return {"doing": text[:60]}


def _town(world: Town, names: list[str]) -> dict[str, Any]:
    return {
        "about": [next(p.about for p in PEOPLE if p.name == n) for n in names],
        "width": WIDTH,
        "height": HEIGHT,
        "walls": [list(t) for t in sorted(world.map.blocked - WATER)],
        "water": [list(t) for t in sorted(WATER)],
        "places": [[p.name, p.kind, p.x, p.y, p.width, p.height] for p in world.map.places],
    }
