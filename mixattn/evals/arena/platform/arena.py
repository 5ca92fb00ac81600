"""The arena without its web pages: drawing pairs, the steps of a battle, and what a page may show."""

import asyncio
import itertools
import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from starlette.responses import Response

from mixattn.evals.arena.platform import leaks, style_counts, tokens, topics, work
from mixattn.evals.arena.platform.backends import Backends
from mixattn.evals.arena.platform.battle import WINNERS, Refused
from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.drawing import PairDraw
from mixattn.evals.arena.platform.durable import DurableWrites
from mixattn.evals.arena.platform.leaderboard import Leaderboards
from mixattn.evals.arena.platform.live import LiveAnswers
from mixattn.evals.arena.platform.pacer import Pacer
from mixattn.evals.arena.platform.store import USER, WRITING, ArenaStore

HERE = Path(__file__).parent
LONGEST_PROMPT = 20_000  # characters
SIDES = ("A", "B")
HOUSE_S = 0.1  # between looks at what is to be saved
TIDY_EVERY, COUNT_EVERY = 10, 50  # such looks until the log is tidied, and the votes are counted
LOG = logging.getLogger("mixattn.arena")


@dataclass(frozen=True)
class Visitor:
    """Who asks: the session, a pseudonym of the address, and the browser's language."""

    session: str
    address: str = ""
    language: str = "unknown"


@dataclass(frozen=True)
class PlatformConfig:
    """What an operator chooses.

    Attributes:
      answer_limit_s: time limit of one answer.
      per_minute, per_minute_address: battles that one session, or one address, may start in a minute.
      cap: no voter counts for more than this many votes.
      max_move: Elo points by which no voter moves any rating, to first order; 0 is no limit.
      count_delay_s: mean of the random delay after which a vote counts; the delay denies a rigger feedback.
      min_vote_s: a vote sooner after the battle's start is kept and not counted.
      same_prompt: a voter's battles with one prompt, beyond which votes are kept and not counted.
      honeypots: share of battles that set one model against itself; their votes do not count.
      sampling: pairs by `weights`, or `active`: those whose interval would shrink most.
      work_bits: zero bits of the proof of work before a battle; 0 asks for none.
      seed: of pairs and sides; None is random.
    """

    answer_limit_s: float = 120.0
    per_minute: int = 30
    per_minute_address: int = 120
    cap: float = 100.0
    max_move: float = 0.0
    count_delay_s: float = 0.0
    min_vote_s: float = 0.0
    same_prompt: int = 20
    honeypots: float = 0.0
    sampling: str = "weights"
    work_bits: int = 0
    seed: int | None = None


class ArenaPlatform:
    """One arena: its models, database, answers in progress and pages."""

    def __init__(
        self,
        models: Sequence[ArenaModel],
        store: ArenaStore,
        config: PlatformConfig,
        pacer: Pacer | None = None,
    ):
        self.models = {model.name: model for model in models}
        self.store, self.config = store, config
        self.pacer = pacer or Pacer()
        self.backends = Backends(models)
        self.durable = DurableWrites(store.flush)
        self.live = LiveAnswers(store, self.pacer, config.answer_limit_s, self.backends)
        self.boards = Leaderboards(store, config.cap, config.max_move)
        self.rng = np.random.default_rng(config.seed)
        self.leak_words = leaks.leak_words(self.models, [a for m in models for a in m.aliases])
        self.pages = Environment(loader=FileSystemLoader(HERE / "pages"), autoescape=True, trim_blocks=True)
        broken = {model.name for model in models if model.broken}
        store.sync_models({model.name: model.weight for model in models}, broken)
        active = config.sampling == "active"
        self.pairs = PairDraw(self.models, active, config.honeypots, self.rng, self._publish)
        self.probabilities()  # the log has them from the first battle on

    # Drawing a pair

    def on(self) -> set[str]:
        """The models that are switched on."""
        return {row["name"] for row in self.store.models() if row["enabled"]} & self.models.keys()

    def probabilities(self) -> list[tuple[str, str, float]]:
        """(model, model, probability) of each unordered pair as it would be drawn now; public."""
        return self.pairs.table(self.on(), self.boards.latest())

    def _publish(self, table: list[tuple[str, str, float]]) -> None:
        """Every table of probabilities that was ever used stands in the public log."""
        rows = [[a, b, round(p, 6)] for a, b, p in table]
        self.store.log("sampling", rule=self.config.sampling, pairs=rows)

    async def keep_house(self) -> None:
        """Saves answers in progress, and keeps the database's log short and, for active sampling, the votes
        that count at hand; runs until it is cancelled."""
        for look in itertools.count(1):
            await asyncio.sleep(HOUSE_S)
            try:
                self.live.save()
                if look % TIDY_EVERY == 0:
                    await asyncio.to_thread(self.store.tidy)
                if self.config.sampling == "active" and look % COUNT_EVERY == 0:
                    await asyncio.to_thread(self.boards.counted)
            except (OSError, sqlite3.Error):
                LOG.exception("the arena's database refuses")

    # Steps of a battle

    def begin(self, visitor: Visitor, mode: str, prompt: str, chosen: list[str]) -> str:
        """Starts a battle; returns its identifier.

        Raises:
          Refused: a limit is reached, the prompt is empty or too long, or a model is not there.
        """
        prompt, since_s = checked(prompt), time.time() - 60
        for by, who, most in (
            ("session", visitor.session, self.config.per_minute),
            ("address", visitor.address, self.config.per_minute_address),
        ):
            if who and self.store.recent_battles(who, since_s, by=by) >= most:
                raise Refused(f"at most {most} battles a minute from one {by}; wait a little", 429)
        drawn = None
        if mode == "battle":
            drawn = self.pairs.draw(self.probabilities(), self.on())
            chosen = list(drawn.models)
        elif not set(chosen) <= self.on():
            raise Refused("there is no such model", 404)
        battle = self.store.open_battle(
            visitor.session,
            mode,
            chosen,
            prompt,
            language=visitor.language,
            category=topics.category(prompt),
            probability=drawn.probability if drawn else None,
            honeypot=drawn.honeypot if drawn else "",
            address=visitor.address,
        )
        self.answer(battle, 1, chosen)
        return battle

    def again(self, battle: dict[str, Any]) -> None:
        """New answers to the last message; the replaced ones are kept, and searched for names."""
        turn = self.store.again(battle["id"])
        self.answer(battle["id"], turn, battle["models"])

    def answer(self, battle: str, turn: int, models: Sequence[str]) -> None:
        talks = [[m for m in talk if m["content"]] for talk in self.store.conversations(battle)]
        self.live.start(battle, turn, [self.models[name] for name in models], talks)

    async def vote(self, battle: dict[str, Any], session: str, winner: str) -> None:
        """Casts the vote; it is on disk when this returns.

        Raises:
          Refused: the state of the battle does not allow it.
        """
        self.live.save(battle["id"])  # what the page shows may be newer than what was saved
        voter = f"arena_user_{tokens.sign(self.store.secret, 'voter', session)[:12]}"
        delay_s = float(self.rng.exponential(self.config.count_delay_s)) if self.config.count_delay_s else 0.0
        talks = self.store.conversations(battle["id"])
        why_not = self.not_counted(battle, talks, session)
        self.store.vote(battle["id"], winner, voter, delay_s, why_not, style_counts.of_conversations(talks))
        self.live.stop(battle["id"])
        await self.durable.wait()

    def not_counted(
        self, battle: dict[str, Any], talks: list[list[dict[str, str]]], session: str
    ) -> str | None:
        """Why a vote on this battle is kept and does not count, or None."""
        if battle["honeypot"]:
            return "honeypot"
        texts = [message["content"] for talk in talks for message in talk]
        if leaks.find_leak(texts + self.store.replaced(battle["id"]), self.leak_words):
            return "a name leaked"
        if time.time() - battle["started_s"] < self.config.min_vote_s:
            return "too fast"
        prompt = next(m["content"] for m in battle["messages"] if m["position"] == USER)
        if self.store.times_asked(session, prompt) > self.config.same_prompt:
            return "repeated prompt"
        return None

    def work(self, session: str) -> dict[str, Any] | None:
        """The proof of work that a page with the first form asks for, or None."""
        bits = self.config.work_bits
        return {"challenge": work.challenge(self.store.secret, session), "bits": bits} if bits else None

    # What pages show

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        return Response(self.pages.get_template(name).render(**values), status, media_type="text/html")

    def view(self, battle: dict[str, Any], session: str) -> dict[str, Any]:
        """What the page of a battle shows; model names only after the vote, or if the user chose them."""
        live = self.live.get(battle["id"])
        self.live.save(battle["id"])  # what a page shows, a killed server still has
        done = live is None and all(m["status"] != WRITING for m in battle["messages"])
        named = battle["vote"] is not None or battle["mode"] != "battle"
        turns = []
        for turn in range(1, battle["turns"] + 1):
            rows = {m["position"]: m for m in battle["messages"] if m["turn"] == turn}
            answers = [dict(rows[i]) for i in range(len(battle["models"]))]
            if live is not None and turn == battle["turns"] and battle["vote"] is None:
                for side, answer in enumerate(answers):
                    answer["content"], answer["status"] = live.shown(side), WRITING
            turns.append({"prompt": rows[USER]["content"], "answers": answers})
        return {
            "id": battle["id"],
            "mode": battle["mode"],
            "turns": turns,
            "names": battle["models"] if named else None,
            "sides": SIDES[: len(battle["models"])],
            "writing": live is not None and battle["vote"] is None,
            "may_again": done and battle["vote"] is None,
            "position": live.position if live is not None else 0,
            "vote": battle["vote"],
            "winners": WINNERS,
            "token": self.token(battle["id"], session),
        }

    def token(self, battle: str, session: str) -> str:
        """The right to cast the one vote of a battle, bound to the session."""
        return tokens.sign(self.store.secret, "vote", battle, session)


def checked(prompt: str) -> str:
    """A prompt without control characters at its ends.

    Raises:
      Refused: it is empty or too long.
    """
    prompt = prompt.replace("\x00", "").strip()
    if not prompt:
        raise Refused("the message is empty", 400)
    if len(prompt) > LONGEST_PROMPT:
        raise Refused(f"the message has {len(prompt)} characters; at most {LONGEST_PROMPT} are taken", 413)
    return prompt
