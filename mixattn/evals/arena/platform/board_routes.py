"""The pages of results: leaderboard, history, export, the public log; and the admin's."""

import asyncio
import contextlib
import json
import os
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from mixattn.evals.arena.platform import tokens
from mixattn.evals.arena.platform.arena import ArenaPlatform
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.chart import lines
from mixattn.evals.arena.platform.forms import form

MAX_PAGES = 50


class BoardRoutes:
    """HTTP to results and administration."""

    def __init__(self, arena: ArenaPlatform):
        self.arena = arena
        self._pages: dict[tuple[str, str, bool], tuple[tuple[Any, ...], Any]] = {}

    async def leaderboard(self, request: Request) -> Response:
        category, language = (request.query_params.get(name, "") for name in ("category", "language"))
        style = "style" in request.query_params
        models, probabilities = self.arena.store.models(), self.arena.probabilities()
        return await asyncio.to_thread(self._page, category, language, style, models, probabilities)

    def _page(
        self,
        category: str,
        language: str,
        style: bool,
        models: list[dict[str, Any]],
        probabilities: list[Any],
    ) -> Response:
        """The leaderboard as a page: kept, and written anew when a further vote counts or a model changes."""
        board = self.arena.boards.get(category, language, style=style)
        key, made_of = (category, language, style), (board, models, probabilities)
        kept = self._pages.get(key)
        if kept is None or kept[0][0] is not board or kept[0][1:] != made_of[1:]:
            if len(self._pages) >= MAX_PAGES:
                self._pages.clear()
            html = self.arena.page(
                "leaderboard.html",
                board=board,
                category=category,
                language=language,
                style=style,
                categories=self.arena.boards.choices("category"),
                languages=self.arena.boards.choices("language"),
                models=models,
                probabilities=probabilities,
                config=self.arena.config,
                day=_day,
            )
            self._pages[key] = kept = (made_of, html.body)
        return Response(kept[1], media_type="text/html")

    async def board_json(self, request: Request) -> Response:
        category, language = (request.query_params.get(name, "") for name in ("category", "language"))
        style = "style" in request.query_params
        board = await asyncio.to_thread(self.arena.boards.get, category, language, style=style)
        names = ("votes", "models", "pairs", "why_not", "largest_move", "style")
        return JSONResponse({name: getattr(board, name) for name in names})

    async def history(self, request: Request) -> Response:
        days = await asyncio.to_thread(self.arena.boards.history)
        return self.arena.page("history.html", days=days, chart=lines(days), day=_day)

    async def history_json(self, request: Request) -> Response:
        return JSONResponse({"days": await asyncio.to_thread(self.arena.boards.history)})

    async def log(self, request: Request) -> Response:
        return JSONResponse({"events": self.arena.store.events()})

    async def export(self, request: Request) -> Response:
        """Votes in the public format as JSON lines; votes that do not count carry the reason."""
        with_talks = "conversations" in request.query_params

        def lines() -> Any:
            with (
                contextlib.closing(self.arena.store.reader()) as votes,
                contextlib.closing(self.arena.store.reader()) as talks,
            ):
                for vote in votes.votes():
                    if with_talks:
                        sides = talks.conversations(vote["question_id"])
                        vote |= {"conversation_a": sides[0], "conversation_b": sides[1]}
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
        honeypots = await asyncio.to_thread(self.arena.boards.honeypots)
        return self.arena.page(
            "admin.html",
            models=self.arena.store.models(),
            voters=voters[:200],
            honeypots=honeypots[:200],
            excluded=sorted(self.arena.store.excluded()),
        )

    async def admin_step(self, request: Request) -> Response:
        fields, token = await form(request), self.admin_token()
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
        if voter := fields.get("voter"):
            self.arena.store.exclude(voter[:100], fields.get("excluded") == "1")
            return answer
        self.arena.store.enable(fields.get("model", ""), fields.get("enabled") == "1")
        return answer

    def routes(self) -> list[Route]:
        """The pages of results, and the admin's."""
        return [
            Route("/leaderboard", self.leaderboard),
            Route("/leaderboard.json", self.board_json),
            Route("/history", self.history),
            Route("/history.json", self.history_json),
            Route("/log.json", self.log),
            Route("/votes.jsonl", self.export),
            Route("/admin", self.admin),
            Route("/admin", self.admin_step, methods=["POST"]),
        ]


def _day(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds)) if seconds else ""
