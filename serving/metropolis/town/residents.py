"""A resident: plans its day, walks, meets others, talks turn by turn, remembers and reflects.

Everything is local. What a resident says is part of its appearance, which its partner reads one step later;
nothing changes another resident's state. The private state (`mind`) is a small JSON object that is replaced
and never mutated.
"""

import re
from dataclasses import dataclass
from typing import Any

from serving.metropolis.town import prompts
from serving.metropolis.town.people import Person
from serving.metropolis.town.town_map import Tile, TownMap, neighbour_tiles
from serving.metropolis.town.world import SeenResident, TownView
from serving.metropolis.world import Intent, StepContext, stable_hash

MAX_MEMORIES, MAX_TURNS = 40, 6
REMEET_STEPS = 240  # two residents who met do not meet again sooner
REFLECT_AT = 25  # importance of new memories that triggers a reflection
SILENCE_STEPS = 12  # a partner silent for two minutes has left the conversation


@dataclass(frozen=True)
class Resident:
    """The agent of one person."""

    person: Person
    map: TownMap

    async def proceed(self, view: TownView, ctx: StepContext) -> Intent:
        mind = ctx.state
        wake = stable_hash(self.person.name, "wakes") % 90
        if ctx.step < wake:
            return Intent({}, mind, still_until=wake)
        if "plan" not in mind:
            return await self._get_up(view, ctx, mind)
        speaker = self._find_speaker(view, ctx, mind)
        if speaker is not None:
            return await self._answer(speaker, view, ctx, mind)
        if mind["talk"] is not None:
            return await self._wait_for_answer(view, ctx, mind)
        met = self._find_newly_met(view, ctx, mind)
        if met is not None:
            return await self._meet(met, view, ctx, mind)
        if mind["weight"] >= REFLECT_AT:
            return await self._reflect(ctx, mind)
        return await self._go_about(view, ctx, mind)

    def fallback(self, view: TownView, ctx: StepContext) -> Intent:
        """What to do without an answer from the model: keep walking and leave any conversation."""
        mind = ctx.state
        if "plan" not in mind:
            mind = self._start_day(mind, prompts.default_plan(ctx.step))
        mind = {**mind, "talk": None}
        goal = tuple(mind["goal"]) if mind["goal"] else None
        return Intent({"to": self._step(view, ctx, goal)} if goal else {}, mind)

    # ---- the day ----------------------------------------------------------------------------------------
    async def _get_up(self, view: TownView, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        text = (await ctx.llm(prompts.plan(self.person, self.map, ctx.step), max_tokens=160)).text
        plan = prompts.parse_plan(text, self.map) or prompts.default_plan(ctx.step)
        return Intent({"look": {"doing": "planning the day"}}, self._start_day(mind, plan))

    def _start_day(self, mind: dict[str, Any], plan: list[list[Any]]) -> dict[str, Any]:
        return {
            **mind,
            **{"plan": plan, "goal": None, "doing": "", "memory": [], "met": {}, "talk": None, "weight": 0},
        }

    async def _go_about(self, view: TownView, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        """Follows the plan: picks the next place when its time comes, walks there and does something."""
        if mind["plan"] and ctx.step >= mind["plan"][0][0]:
            _, place, activity = mind["plan"][0]
            tiles = self.map.walkable_tiles(place)
            goal = tiles[stable_hash(ctx.agent, ctx.step, place) % len(tiles)]
            mind = {**mind, "plan": mind["plan"][1:], "goal": list(goal), "doing": activity}
            return Intent({"look": {"doing": f"walking to {place}"}}, mind)
        goal_now = mind["goal"]
        if goal_now is None:
            return Intent({}, mind, still_until=mind["plan"][0][0] if mind["plan"] else 0)
        if view.pos == tuple(goal_now) or self._goal_is_taken(view, tuple(goal_now)):
            text = (await ctx.llm(prompts.activity(self.person, view, mind, ctx.step), max_tokens=24)).text
            doing = _one_line(text, 60) or mind["doing"]
            mind = self._remember({**mind, "goal": None}, ctx.step, f"was at {view.place}: {doing}", 1)
            return Intent({"look": {"doing": doing}}, mind)
        return Intent({"to": self._step(view, ctx, tuple(goal_now))}, mind)

    def _goal_is_taken(self, view: TownView, goal: Tile) -> bool:
        """True if someone stands on the goal and the resident stands beside it."""
        near = max(abs(view.pos[0] - goal[0]), abs(view.pos[1] - goal[1])) <= 1
        return near and any(other.pos == goal for other in view.others)

    def _step(self, view: TownView, ctx: StepContext, goal: Tile) -> Tile | None:
        """A free tile nearer to the goal; if there is none, a random free neighbour or None (stay)."""
        occupied = {other.pos for other in view.others}
        nearer = [tile for tile in self.map.next_tiles(view.pos, goal) if tile not in occupied]
        if nearer:
            return nearer[0]
        aside = [t for t in neighbour_tiles(view.pos) if self.map.is_walkable(t) and t not in occupied]
        return ctx.rng.choice([None, *aside])

    # ---- people -----------------------------------------------------------------------------------------
    def _find_speaker(self, view: TownView, ctx: StepContext, mind: dict[str, Any]) -> SeenResident | None:
        """The resident who addressed this one last: its partner in a conversation, else anyone."""
        speakers = [o for o in view.others if o.said_to == ctx.agent and o.said_at >= mind.get("heard", -1)]
        if mind["talk"] is not None:
            return next((o for o in speakers if o.name == mind["talk"]["with"]), None)
        return speakers[0] if speakers else None

    def _find_newly_met(self, view: TownView, ctx: StepContext, mind: dict[str, Any]) -> SeenResident | None:
        for other in view.others:
            if (
                other.doing == "asleep"
                or ctx.step - mind["met"].get(other.name, -REMEET_STEPS) < REMEET_STEPS
            ):
                continue
            if other.said_at < ctx.step - SILENCE_STEPS:  # not in a conversation
                return other
        return None

    async def _meet(
        self, other: SeenResident, view: TownView, ctx: StepContext, mind: dict[str, Any]
    ) -> Intent:
        mind = {**mind, "met": {**mind["met"], other.name: ctx.step}}
        mind = self._remember(mind, ctx.step, f"saw {other.name} at {view.place}, {other.doing}", 2)
        answer = (await ctx.llm(prompts.decide(self.person, other, view, mind), max_tokens=4)).text
        if not answer.strip().lower().startswith("y"):
            return Intent({}, mind)
        talk = {"with": other.name, "turns": 1, "said": ctx.step, "lines": []}
        return await self._say({**mind, "talk": talk}, view, ctx)

    async def _answer(
        self, other: SeenResident, view: TownView, ctx: StepContext, mind: dict[str, Any]
    ) -> Intent:
        talk = mind["talk"] or {"with": other.name, "turns": 0, "said": ctx.step, "lines": []}
        lines = [*talk["lines"], f"{other.name}: {other.said}"][-8:]
        talk = {**talk, "lines": lines, "turns": talk["turns"] + 1, "said": ctx.step}
        mind = {**mind, "met": {**mind["met"], other.name: ctx.step}, "heard": ctx.step, "talk": talk}
        if talk["turns"] > MAX_TURNS or _is_farewell(other.said):
            return await self._part(ctx, mind)
        return await self._say(mind, view, ctx)

    async def _say(self, mind: dict[str, Any], view: TownView, ctx: StepContext) -> Intent:
        talk = mind["talk"]
        last = talk["turns"] >= MAX_TURNS
        prompt = prompts.say(self.person, talk, view, mind, last=last)
        text = _one_line((await ctx.llm(prompt, max_tokens=48)).text, 160) or "Hm."
        talk = {**talk, "lines": [*talk["lines"], f"{ctx.agent}: {text}"][-8:]}
        look = {"said": text, "to": talk["with"], "at": ctx.step, "doing": f"talking with {talk['with']}"}
        return Intent({"look": look}, {**mind, "talk": talk})

    async def _wait_for_answer(self, view: TownView, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        away = all(o.name != mind["talk"]["with"] for o in view.others)
        if away or ctx.step - mind["talk"]["said"] > SILENCE_STEPS or _is_farewell(mind["talk"]["lines"][-1]):
            return await self._part(ctx, mind)
        return Intent({}, mind)

    async def _part(self, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        """Ends a conversation: keeps its gist and its importance as a memory."""
        prompt = prompts.takeaway(self.person, mind["talk"])
        text = (await ctx.llm(prompt, max_tokens=40)).text
        importance = re.search(r"\b(10|[1-9])\b", text)
        gist = _one_line(re.sub(r"^\W*(10|[1-9])\b\W*", "", text), 120) or "we talked"
        mind = self._remember(
            mind, ctx.step, f"{mind['talk']['with']}: {gist}", int(importance[1]) if importance else 3
        )
        return Intent({"look": {"doing": mind["doing"] or "thinking"}}, {**mind, "talk": None})

    async def _reflect(self, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        text = (await ctx.llm(prompts.reflect(self.person, mind), max_tokens=48)).text
        mind = self._remember(mind, ctx.step, f"insight: {_one_line(text, 120)}", 0)
        return Intent({"look": {"doing": "lost in thought"}}, {**mind, "weight": 0})

    def _remember(self, mind: dict[str, Any], step: int, text: str, importance: int) -> dict[str, Any]:
        memory = [*mind["memory"], [step, text, importance]][-MAX_MEMORIES:]
        return {**mind, "memory": memory, "weight": mind["weight"] + importance}


def _one_line(text: str, limit: int) -> str:
    """The first line of a model's answer, without quotes and fences, at most `limit` characters."""
    line = next((part for part in text.strip().splitlines() if part.strip()), "")
    return line.strip().strip('"“”`* ')[:limit]


def _is_farewell(text: str) -> bool:
    return re.search(r"\b(bye|goodbye|see you|farewell)\b", text.lower()) is not None
