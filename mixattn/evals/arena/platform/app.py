"""The arena's web application: its routes, headers and lifespan."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mixattn.evals.arena.platform.arena import HERE, ArenaPlatform
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.battle_routes import BattleRoutes
from mixattn.evals.arena.platform.board_routes import BoardRoutes
from mixattn.evals.arena.platform.headers import COOKIE, SafeHeaders


def make_app(arena: ArenaPlatform) -> Starlette:
    """The application; uvicorn or a test client runs it."""

    async def refused(request: Request, why: Exception) -> Response:
        status = why.status if isinstance(why, Refused) else 500
        return arena.page("refused.html", status, why=str(why))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        running = [asyncio.create_task(arena.pacer.run()), asyncio.create_task(arena.keep_house())]
        await arena.backends.start()
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await arena.live.close()
            arena.boards.close()
            await arena.backends.close()

    routes = [
        *BattleRoutes(arena).routes(),
        *BoardRoutes(arena).routes(),
        Route("/healthz", lambda request: PlainTextResponse("ok")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    middleware = [Middleware(SafeHeaders, secret=arena.store.secret, cookie=COOKIE)]
    return Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers={Refused: refused}
    )
