"""The arena's pages and forms. They work without JavaScript; the one script streams answers and handles
keys."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mixattn.evals.arena.platform import leaks, tokens, topics
from mixattn.evals.arena.platform.battle import WINNERS, Refused
from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.headers import COOKIE, SafeHeaders
from mixattn.evals.arena.platform.leaderboard import Leaderboards
from mixattn.evals.arena.platform.live import LiveAnswers
from mixattn.evals.arena.platform.pacer import Pacer
from mixattn.evals.arena.platform.store import USER, WRITING, ArenaStore

HERE = Path(__file__).parent
LONGEST_PROMPT = 20_000  # characters
LONGEST_BODY = 100_000  # bytes
SIDES = ("A", "B")
HEARTBEAT_S = 15.0


@dataclass(frozen=True)
class PlatformConfig:
    """What an operator chooses.

    Attributes:
      answer_limit_s: time limit of one answer.
      per_minute: battles that one session may start in a minute.
      cap: no voter counts for more than this many votes.
      count_delay_s: mean of the random delay after which a vote counts; the delay denies a rigger feedback.
      min_vote_s: a vote sooner after the battle's start is kept and not counted.
      same_prompt: a voter's battles with one prompt, beyond which votes are kept and not counted.
      honeypots: share of battles that set one model against itself; their votes do not count.
      seed: of pairs and sides; None is random.
    """

    answer_limit_s: float = 120.0
    per_minute: int = 30
    cap: float = 100.0
    count_delay_s: float = 0.0
    min_vote_s: float = 0.0
    same_prompt: int = 20
    honeypots: float = 0.0
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
        self.live = LiveAnswers(store, self.pacer, config.answer_limit_s)
        self.boards = Leaderboards(store, config.cap)
        self.rng = np.random.default_rng(config.seed)
        self.leak_words = leaks.leak_words(self.models, [a for m in models for a in m.aliases])
        self.pages = Environment(loader=FileSystemLoader(HERE / "pages"), autoescape=True, trim_blocks=True)
        store.sync_models({model.name: model.weight for model in models})

    # Drawing a pair

    def probabilities(self) -> list[tuple[str, str, float]]:
        """(model, model, probability) of each unordered pair: independent of who votes how; public."""
        on = {row["name"] for row in self.store.models() if row["enabled"]}
        names = sorted(name for name, model in self.models.items() if name in on and model.weight > 0)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        weight = np.array([self.models[a].weight * self.models[b].weight for a, b in pairs])
        return [(a, b, float(w)) for (a, b), w in zip(pairs, weight / weight.sum())] if pairs else []

    def draw(self) -> tuple[list[str], float, bool]:
        """The two models in the order of their sides, the pair's probability, and whether it is a
        honeypot."""
        pairs = self.probabilities()
        if not pairs:
            raise Refused("fewer than two models are switched on", 503)
        a, b, p = pairs[int(self.rng.choice(len(pairs), p=np.array([pair[2] for pair in pairs])))]
        if self.rng.random() < self.config.honeypots:
            return [a, a], p, True
        return ([a, b] if self.rng.random() < 0.5 else [b, a]), p, False

    # Steps of a battle

    def begin(self, session: str, mode: str, prompt: str, language: str, chosen: list[str]) -> str:
        prompt = checked(prompt)
        if self.store.recent_battles(session, time.time() - 60) >= self.config.per_minute:
            raise Refused(f"at most {self.config.per_minute} battles a minute; wait a little", 429)
        probability, honeypot = None, False
        if mode == "battle":
            chosen, probability, honeypot = self.draw()
        on = {row["name"] for row in self.store.models() if row["enabled"]}
        if any(name not in self.models or name not in on for name in chosen):
            raise Refused("there is no such model", 404)
        battle = self.store.open_battle(
            session,
            mode,
            chosen,
            prompt,
            language=language,
            category=topics.category(prompt),
            probability=probability,
            honeypot=honeypot,
        )
        self.answer(battle, 1, chosen)
        return battle

    def answer(self, battle: str, turn: int, models: Sequence[str]) -> None:
        talks = [[m for m in talk if m["content"]] for talk in self.store.conversations(battle)]
        self.live.start(battle, turn, [self.models[name] for name in models], talks)

    def vote(self, battle: dict[str, Any], session: str, winner: str) -> None:
        live = self.live.get(battle["id"])
        if live is not None:  # what the page shows may be newer than what was saved
            for side, text in enumerate(live.texts):
                if text:
                    self.store.write(battle["id"], battle["turns"], side, text, WRITING)
        voter = f"arena_user_{tokens.sign(self.store.secret, 'voter', session)[:12]}"
        delay_s = float(self.rng.exponential(self.config.count_delay_s)) if self.config.count_delay_s else 0.0
        self.store.vote(battle["id"], winner, voter, delay_s, self.not_counted(battle, session))
        self.live.stop(battle["id"])

    def not_counted(self, battle: dict[str, Any], session: str) -> str | None:
        """Why a vote on this battle is kept and does not count, or None."""
        texts = [
            text for talk in self.store.conversations(battle["id"]) for text in (m["content"] for m in talk)
        ]
        if battle["honeypot"]:
            return "honeypot"
        if leaks.find_leak(texts, self.leak_words):
            return "a name leaked"
        if time.time() - battle["started_s"] < self.config.min_vote_s:
            return "too fast"
        prompt = next(m["content"] for m in battle["messages"] if m["position"] == USER)
        if self.store.times_asked(session, prompt) > self.config.same_prompt:
            return "repeated prompt"
        return None

    # What pages show

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        return Response(self.pages.get_template(name).render(**values), status, media_type="text/html")

    def view(self, battle: dict[str, Any], session: str) -> dict[str, Any]:
        """What the page of a battle shows; model names only after the vote, or if the user chose them."""
        live = self.live.get(battle["id"])
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


class _Routes:
    """HTTP to steps of the platform and back."""

    def __init__(self, arena: ArenaPlatform):
        self.arena = arena

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form that our own page sent."""
        origin = request.headers.get("origin")
        if origin and origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused("this form was sent by another site", 403)
        if int(request.headers.get("content-length") or 0) > LONGEST_BODY:
            raise Refused(f"more than {LONGEST_BODY} bytes", 413)
        return {name: str(value) for name, value in (await request.form()).items()}

    def own(self, request: Request) -> dict[str, Any]:
        """The battle in the address, if this session started it."""
        battle = self.arena.store.battle(request.path_params["battle"])
        if battle is None or battle["session"] != request.state.session:
            raise Refused("there is no such battle here", 404)
        return battle

    async def home(self, request: Request) -> Response:
        names = sorted(row["name"] for row in self.arena.store.models() if row["enabled"])
        mode = {"/": "battle", "/side-by-side": "side by side", "/direct": "direct"}[request.url.path]
        return self.arena.page("home.html", mode=mode, names=names if mode != "battle" else [])

    async def begin(self, request: Request) -> Response:
        fields = await self.form(request)
        mode = fields.get("mode", "battle")
        chosen = {"battle": [], "side by side": ["model_a", "model_b"], "direct": ["model_a"]}.get(mode)
        if chosen is None:
            raise Refused("there is no such mode", 400)
        language = topics.language(request.headers.get("accept-language", ""))
        models = [fields.get(name, "") for name in chosen]
        battle = self.arena.begin(request.state.session, mode, fields.get("prompt", ""), language, models)
        return RedirectResponse(f"/battle/{battle}", 303)

    async def show(self, request: Request) -> Response:
        battle = self.own(request)
        return self.arena.page("battle.html", **self.arena.view(battle, request.state.session), shared=False)

    async def turn(self, request: Request) -> Response:
        battle, fields = self.own(request), await self.form(request)
        prompt = checked(fields.get("prompt", ""))
        turn = self.arena.store.ask(battle["id"], prompt)
        self.arena.answer(battle["id"], turn, battle["models"])
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def stop(self, request: Request) -> Response:
        battle, fields = self.own(request), await self.form(request)
        side = fields.get("side", "")
        self.arena.live.stop(battle["id"], int(side) if side in ("0", "1") else None)
        await asyncio.sleep(0)
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def vote(self, request: Request) -> Response:
        battle, fields = self.own(request), await self.form(request)
        session = request.state.session
        given = fields.get("token", "")
        if not tokens.matches(self.arena.store.secret, given, "vote", battle["id"], session):
            raise Refused("this vote carries no valid token of the battle", 403)
        if battle["mode"] == "direct":
            raise Refused("a direct chat has nothing to compare", 400)
        try:
            self.arena.vote(battle, session, fields.get("winner", ""))
        except Refused as why:
            again = self.arena.store.battle(battle["id"])
            if again is None or again["vote"] is None or why.status != 409:
                raise
            view = self.arena.view(again, session)
            return self.arena.page("battle.html", 409, **view, shared=False, said=str(why))
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def share(self, request: Request) -> Response:
        battle = self.own(request)
        await self.form(request)
        if battle["mode"] == "battle" and battle["vote"] is None:
            raise Refused("a battle can be shared after its vote")
        return RedirectResponse(f"/shared/{self.arena.store.share(battle['id'])}", 303)

    async def shared(self, request: Request) -> Response:
        battle = self.arena.store.shared(request.path_params["share"])
        if battle is None:
            raise Refused("there is no such conversation", 404)
        return self.arena.page("battle.html", **self.arena.view(battle, ""), shared=True)

    async def stream(self, request: Request) -> Response:
        battle = self.own(request)
        start = request.headers.get("last-event-id") or request.query_params.get("from", "0")
        position = int(start) if start.isdigit() else 0
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            self.events(battle["id"], position), media_type="text/event-stream", headers=headers
        )

    async def events(self, battle: str, position: int) -> AsyncIterator[str]:
        """Both sides' new text since `position`, then `end`. Says nothing of which side is fast."""
        live = self.arena.live.get(battle)
        turn = live
        while turn is not None:
            waiting = turn.changed
            if turn.position > position:
                texts = [text[position : turn.position] for text in turn.texts]
                position = turn.position
                yield f"id: {position}\ndata: {json.dumps(texts)}\n\n"
            if turn.complete:
                break
            try:
                await asyncio.wait_for(waiting.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield ": still here\n\n"
        yield "event: end\ndata: {}\n\n"

    async def leaderboard(self, request: Request) -> Response:
        category, language = (request.query_params.get(name, "") for name in ("category", "language"))
        boards = self.arena.boards
        board = await asyncio.to_thread(boards.get, category, language)
        return self.arena.page(
            "leaderboard.html",
            board=board,
            category=category,
            language=language,
            categories=boards.choices("category"),
            languages=boards.choices("language"),
            models=self.arena.store.models(),
            probabilities=self.arena.probabilities(),
            cap=self.arena.config.cap,
            day=lambda s: time.strftime("%Y-%m-%d", time.gmtime(s)) if s else "",
        )

    async def board_json(self, request: Request) -> Response:
        board = await asyncio.to_thread(self.arena.boards.get, request.query_params.get("category", ""), "")
        return JSONResponse({"votes": board.votes, "models": board.models, "why_not": board.why_not})

    async def log(self, request: Request) -> Response:
        return JSONResponse({"events": self.arena.store.events()})

    async def export(self, request: Request) -> Response:
        """Votes in the public format as JSON lines; votes that do not count carry the reason."""
        with_talks = "conversations" in request.query_params

        def lines() -> Any:
            for vote in self.arena.store.votes(counted=False):
                if with_talks:
                    talks = self.arena.store.conversations(vote["question_id"])
                    vote |= {"conversation_a": talks[0], "conversation_b": talks[1]}
                yield json.dumps(vote, ensure_ascii=False) + "\n"

        return StreamingResponse(lines(), media_type="application/jsonl")

    # Admin

    def admin_token(self) -> str:
        token = os.environ.get("ARENA_ADMIN_TOKEN", "")
        if len(token) < 16:
            raise Refused("set ARENA_ADMIN_TOKEN to at least 16 characters and start again", 404)
        return token

    def is_admin(self, request: Request) -> bool:
        proof = request.cookies.get("arena_admin", "")
        return tokens.matches(
            self.arena.store.secret, proof, "admin", self.admin_token(), request.state.session
        )

    async def admin(self, request: Request) -> Response:
        if not self.is_admin(request):
            return self.arena.page("login.html")
        voters = await asyncio.to_thread(self.arena.boards.voters)
        return self.arena.page("admin.html", models=self.arena.store.models(), voters=voters[:200])

    async def admin_step(self, request: Request) -> Response:
        fields, token = await self.form(request), self.admin_token()
        answer = RedirectResponse("/admin", 303)
        if "token" in fields:
            proof = tokens.sign(self.arena.store.secret, "admin", fields["token"], request.state.session)
            if not tokens.matches(self.arena.store.secret, proof, "admin", token, request.state.session):
                await asyncio.sleep(1)
                raise Refused("this is not the admin's token", 403)
            answer.set_cookie("arena_admin", proof, httponly=True, samesite="strict")
            return answer
        if not self.is_admin(request):
            raise Refused("log in first", 403)
        self.arena.store.enable(fields.get("model", ""), fields.get("enabled") == "1")
        return answer


def make_app(arena: ArenaPlatform) -> Starlette:
    """The application; uvicorn or a test client runs it."""
    on = _Routes(arena)

    async def refused(request: Request, why: Exception) -> Response:
        status = why.status if isinstance(why, Refused) else 500
        return arena.page("refused.html", status, why=str(why))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pacing = asyncio.create_task(arena.pacer.run())
        try:
            yield
        finally:
            pacing.cancel()
            await arena.live.close()

    routes = [
        *(Route(path, on.home) for path in ("/", "/side-by-side", "/direct")),
        Route("/battle", on.begin, methods=["POST"]),
        Route("/battle/{battle}", on.show),
        Route("/battle/{battle}/stream", on.stream),
        *(
            Route(f"/battle/{{battle}}/{name}", step, methods=["POST"])
            for name, step in (("turn", on.turn), ("stop", on.stop), ("vote", on.vote), ("share", on.share))
        ),
        Route("/shared/{share}", on.shared),
        Route("/leaderboard", on.leaderboard),
        Route("/leaderboard.json", on.board_json),
        Route("/log.json", on.log),
        Route("/votes.jsonl", on.export),
        Route("/admin", on.admin),
        Route("/admin", on.admin_step, methods=["POST"]),
        Route("/healthz", lambda request: PlainTextResponse("ok")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    middleware = [Middleware(SafeHeaders, secret=arena.store.secret, cookie=COOKIE)]
    return Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers={Refused: refused}
    )
