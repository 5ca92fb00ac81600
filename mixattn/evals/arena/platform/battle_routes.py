"""The pages and forms of battles. They work without JavaScript; the one script streams answers and handles
keys."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from mixattn.evals.arena.platform import tokens, topics, work
from mixattn.evals.arena.platform.arena import ArenaPlatform, Visitor, checked
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.forms import form


class BattleRoutes:
    """HTTP to steps of a battle and back."""

    def __init__(self, arena: ArenaPlatform):
        self.arena = arena

    def visitor(self, request: Request) -> Visitor:
        """Who sent a request; the address is kept as a signature that names nobody."""
        host = request.client.host if request.client else ""
        address = tokens.sign(self.arena.store.secret, "address", network_of(host))[:16] if host else ""
        language = topics.language(request.headers.get("accept-language", ""))
        return Visitor(request.state.session, address, language)

    def own(self, request: Request) -> dict[str, Any]:
        """The battle in the address, if this session started it."""
        battle = self.arena.store.battle(request.path_params["battle"])
        if battle is None or battle["session"] != request.state.session:
            raise Refused("there is no such battle here", 404)
        return battle

    async def home(self, request: Request) -> Response:
        names = sorted(row["name"] for row in self.arena.store.models() if row["enabled"])
        mode = {"/": "battle", "/side-by-side": "side by side", "/direct": "direct"}[request.url.path]
        names = names if mode != "battle" else []
        work = self.arena.work(request.state.session)
        return self.arena.page("home.html", mode=mode, names=names, work=work)

    async def begin(self, request: Request) -> Response:
        fields = await form(request)
        mode = fields.get("mode", "battle")
        chosen = {"battle": [], "side by side": ["model_a", "model_b"], "direct": ["model_a"]}.get(mode)
        if chosen is None:
            raise Refused("there is no such mode", 400)
        models = [fields.get(name, "") for name in chosen]
        if bits := self.arena.config.work_bits:
            given, number = fields.get("challenge", ""), fields.get("work", "")
            work.check(self.arena.store, request.state.session, given, number, bits)
        battle = self.arena.begin(self.visitor(request), mode, fields.get("prompt", ""), models)
        return RedirectResponse(f"/battle/{battle}", 303)

    async def show(self, request: Request) -> Response:
        battle = self.own(request)
        return self.arena.page("battle.html", **self.arena.view(battle, request.state.session), shared=False)

    async def turn(self, request: Request) -> Response:
        battle, fields = self.own(request), await form(request)
        prompt = checked(fields.get("prompt", ""))
        turn = self.arena.store.ask(battle["id"], prompt)
        self.arena.answer(battle["id"], turn, battle["models"])
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def again(self, request: Request) -> Response:
        battle, _ = self.own(request), await form(request)
        self.arena.again(battle)
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def stop(self, request: Request) -> Response:
        battle, fields = self.own(request), await form(request)
        side = fields.get("side", "")
        self.arena.live.stop(battle["id"], int(side) if side in ("0", "1") else None)
        await asyncio.sleep(0)
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def vote(self, request: Request) -> Response:
        battle, fields = self.own(request), await form(request)
        session = request.state.session
        given = fields.get("token", "")
        if not tokens.matches(self.arena.store.secret, given, "vote", battle["id"], session):
            raise Refused("this vote carries no valid token of the battle", 403)
        if battle["mode"] == "direct":
            raise Refused("a direct chat has nothing to compare", 400)
        try:
            await self.arena.vote(battle, session, fields.get("winner", ""))
        except Refused as why:
            again = self.arena.store.battle(battle["id"])
            if again is None or again["vote"] is None or why.status != 409:
                raise
            view = self.arena.view(again, session)
            return self.arena.page("battle.html", 409, **view, shared=False, said=str(why))
        return RedirectResponse(f"/battle/{battle['id']}", 303)

    async def share(self, request: Request) -> Response:
        battle = self.own(request)
        await form(request)
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
            await waiting.wait()
            if turn.position == position and not turn.complete:
                yield ": still here\n\n"
        yield "event: end\ndata: {}\n\n"

    def routes(self) -> list[Route]:
        """The pages and forms of battles."""
        steps = (
            ("turn", self.turn),
            ("again", self.again),
            ("stop", self.stop),
            ("vote", self.vote),
            ("share", self.share),
        )
        return [
            *(Route(path, self.home) for path in ("/", "/side-by-side", "/direct")),
            Route("/battle", self.begin, methods=["POST"]),
            Route("/battle/{battle}", self.show),
            Route("/battle/{battle}/stream", self.stream),
            *(Route(f"/battle/{{battle}}/{name}", step, methods=["POST"]) for name, step in steps),
            Route("/shared/{share}", self.shared),
        ]


def network_of(host: str) -> str:
    """The address itself; of IPv6 the first 64 bits, which one household shares."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(getattr(address, "ipv4_mapped", None) or address)
