"""A resident: plans the day, walks, notices whom it meets, talks turn by turn, remembers and reflects.

Everything is local. A conversation is speech that the other hears one step later, never a change of the
other's mind; where someone is, is what was last seen. The private state is small JSON and replaced, never
mutated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.metropolis.town import prompts
from serving.metropolis.town.people import Person
from serving.metropolis.town.streets import Streets, Tile, around
from serving.metropolis.town.world import Sight, Sighting
from serving.metropolis.world import AgentId, Intent, StepContext, stable_hash

MEMORIES, REMEET_STEPS, TURNS, REFLECT_AT = 40, 240, 6, 25
SILENCE_STEPS = 12  # a partner who has said nothing for two minutes has left the conversation


@dataclass(frozen=True)
class Resident:
    """The agent of one person. `names` are those who live in town (to read names in plans and speech)."""

    person: Person
    map: Streets
    names: Sequence[AgentId]

    async def proceed(self, view: Sight, ctx: StepContext) -> Intent:
        mind = ctx.state
        wake = stable_hash(self.person.name, "wakes") % 90
        if ctx.step < wake:
            return Intent({}, mind, still_until=wake)
        if "plan" not in mind:
            return await self._get_up(view, ctx, mind)
        spoken = self._spoken_to(view, ctx, mind)
        if spoken is not None:
            return await self._answer(spoken, view, ctx, mind)
        if mind["talk"] is not None:
            return await self._wait_for_answer(view, ctx, mind)
        stranger = self._newly_met(view, ctx, mind)
        if stranger is not None:
            return await self._meet(stranger, view, ctx, mind)
        if mind["weight"] >= REFLECT_AT:
            return await self._reflect(ctx, mind)
        return await self._go_about(view, ctx, mind)

    def fallback(self, view: Sight, ctx: StepContext) -> Intent:
        """Lost for words: keep walking; whoever talks to us gets no answer."""
        mind = ctx.state
        if "plan" not in mind:
            mind = self._fresh(mind, prompts.plan_without_model(self.person, ctx.step))
        mind = {**mind, "talk": None}
        goal = tuple(mind["goal"]) if mind["goal"] else None
        return Intent({"to": self._step(view, ctx, goal)} if goal else {}, mind)

    # ---- the day ----------------------------------------------------------------------------------------
    async def _get_up(self, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        text = (await ctx.llm(prompts.plan(self.person, self.map, ctx.step), max_tokens=160)).text
        plan = prompts.read_plan(text, self.map) or prompts.plan_without_model(self.person, ctx.step)
        return Intent({"look": {"doing": "planning the day"}}, self._fresh(mind, plan))

    def _fresh(self, mind: dict[str, Any], plan: list[list[Any]]) -> dict[str, Any]:
        return {
            **mind,
            **{"plan": plan, "goal": None, "doing": "", "memory": [], "met": {}, "talk": None, "weight": 0},
        }

    async def _go_about(self, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        """Follows the plan: pick the next place when its time comes, walk there, settle, do something."""
        if mind["plan"] and ctx.step >= mind["plan"][0][0]:
            _, place, what = mind["plan"][0]
            spots = self.map.spots(place)
            goal = spots[stable_hash(ctx.agent, ctx.step, place) % len(spots)]
            mind = {**mind, "plan": mind["plan"][1:], "goal": list(goal), "doing": what}
            return Intent({"look": {"doing": f"walking to {place}"}}, mind)
        goal_now = mind["goal"]
        if goal_now is None:
            return Intent({}, mind, still_until=mind["plan"][0][0] if mind["plan"] else 0)
        if view.pos == tuple(goal_now) or self._crowded(view, tuple(goal_now)):
            text = (await ctx.llm(prompts.activity(self.person, view, mind, ctx.step), max_tokens=24)).text
            doing = _one_line(text, 60) or mind["doing"]
            mind = self._remember({**mind, "goal": None}, ctx.step, f"was at {view.place}: {doing}", 1)
            return Intent({"look": {"doing": doing}}, mind)
        return Intent({"to": self._step(view, ctx, tuple(goal_now))}, mind)

    def _crowded(self, view: Sight, goal: Tile) -> bool:
        """Somebody has our spot and we stand beside it: good enough."""
        near = max(abs(view.pos[0] - goal[0]), abs(view.pos[1] - goal[1])) <= 1
        return near and any(other.pos == goal for other in view.others)

    def _step(self, view: Sight, ctx: StepContext, goal: Tile) -> Tile | None:
        """One tile nearer if free; if people are in the way, now and then a step aside."""
        occupied = {other.pos for other in view.others}
        ways = [tile for tile in self.map.toward(view.pos, goal) if tile not in occupied]
        if ways:
            return ways[0]
        aside = [t for t in around(view.pos) if self.map.open(t) and t not in occupied]
        return ctx.rng.choice([None, *aside])

    # ---- people -----------------------------------------------------------------------------------------
    def _spoken_to(self, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Sighting | None:
        """Who addressed me since I last looked; my partner first, strangers only if I am free."""
        heard = [o for o in view.others if o.said_to == ctx.agent and o.said_at >= mind.get("heard", -1)]
        if mind["talk"] is not None:
            return next((o for o in heard if o.name == mind["talk"]["with"]), None)
        return heard[0] if heard else None

    def _newly_met(self, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Sighting | None:
        for other in view.others:
            if (
                other.doing == "asleep"
                or ctx.step - mind["met"].get(other.name, -REMEET_STEPS) < REMEET_STEPS
            ):
                continue
            if other.said_at < ctx.step - SILENCE_STEPS:  # not in a conversation
                return other
        return None

    async def _meet(self, other: Sighting, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        mind = {**mind, "met": {**mind["met"], other.name: ctx.step}}
        mind = self._remember(mind, ctx.step, f"saw {other.name} at {view.place}, {other.doing}", 2)
        wants = (await ctx.llm(prompts.decide(self.person, other, view, mind, ctx.step), max_tokens=4)).text
        if not wants.strip().lower().startswith("y"):
            return Intent({}, mind)
        talk = {"with": other.name, "turns": 1, "said": ctx.step, "lines": []}
        return await self._say({**mind, "talk": talk}, view, ctx)

    async def _answer(self, other: Sighting, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        talk = mind["talk"] or {"with": other.name, "turns": 0, "said": ctx.step, "lines": []}
        lines = [*talk["lines"], f"{other.name}: {other.said}"][-8:]
        talk = {**talk, "lines": lines, "turns": talk["turns"] + 1, "said": ctx.step}
        mind = {**mind, "met": {**mind["met"], other.name: ctx.step}, "heard": ctx.step, "talk": talk}
        if talk["turns"] > TURNS or _is_farewell(other.said):
            return await self._part(ctx, mind)
        return await self._say(mind, view, ctx)

    async def _say(self, mind: dict[str, Any], view: Sight, ctx: StepContext) -> Intent:
        talk = mind["talk"]
        last = talk["turns"] >= TURNS
        prompt = prompts.say(self.person, talk, view, mind, ctx.step, last=last)
        text = _one_line((await ctx.llm(prompt, max_tokens=48)).text, 160) or "Hm."
        talk = {**talk, "lines": [*talk["lines"], f"{ctx.agent}: {text}"][-8:]}
        look = {"said": text, "to": talk["with"], "at": ctx.step, "doing": f"talking with {talk['with']}"}
        return Intent({"look": look}, {**mind, "talk": talk})

    async def _wait_for_answer(self, view: Sight, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        away = all(o.name != mind["talk"]["with"] for o in view.others)
        if away or ctx.step - mind["talk"]["said"] > SILENCE_STEPS or _is_farewell(mind["talk"]["lines"][-1]):
            return await self._part(ctx, mind)
        return Intent({}, mind)

    async def _part(self, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        """What stays of a conversation, and how much it mattered."""
        prompt = prompts.takeaway(self.person, mind["talk"])
        text = (await ctx.llm(prompt, max_tokens=40)).text
        worth = re.search(r"\b(10|[1-9])\b", text)
        gist = _one_line(re.sub(r"^\W*(10|[1-9])\b\W*", "", text), 120) or "we talked"
        mind = self._remember(
            mind, ctx.step, f"{mind['talk']['with']}: {gist}", int(worth[1]) if worth else 3
        )
        return Intent({"look": {"doing": mind["doing"] or "thinking"}}, {**mind, "talk": None})

    async def _reflect(self, ctx: StepContext, mind: dict[str, Any]) -> Intent:
        text = (await ctx.llm(prompts.reflect(self.person, mind), max_tokens=48)).text
        mind = self._remember(mind, ctx.step, f"insight: {_one_line(text, 120)}", 0)
        return Intent({"look": {"doing": "lost in thought"}}, {**mind, "weight": 0})

    def _remember(self, mind: dict[str, Any], step: int, text: str, worth: int) -> dict[str, Any]:
        memory = [*mind["memory"], [step, text, worth]][-MEMORIES:]
        return {**mind, "memory": memory, "weight": mind["weight"] + worth}


def _one_line(text: str, limit: int) -> str:
    """The first line a model wrote, without quotes and fences, cut to size."""
    line = next((part for part in text.strip().splitlines() if part.strip()), "")
    return line.strip().strip('"“”`* ')[:limit]


def _is_farewell(text: str) -> bool:
    return re.search(r"\b(bye|goodbye|see you|farewell)\b", text.lower()) is not None
