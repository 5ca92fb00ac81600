"""The log of a router: every event it was told and every worker it chose, as JSON lines; and the replay, in
which a new router of the same kind is told the same and must choose the same.

Blocks of prompts are written as short digests that name the whole prefix, so that the log holds no text.
Pure: times are those of the events.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving import fair
from serving.fair.routers.base import Router
from serving.fair.routers.load_index import WorkerId
from serving.fair.routers.prefix_map import Block
from serving.request import RequestId, RequestInfo

type Write = Callable[[dict[str, Any]], None]


def recorded(name: str, options: Mapping[str, Any], write: Write) -> Router:
    """A router that writes down what happens to it.

    Args:
      options: of the router, ready for JSON.

    Raises:
      ValueError: the name or an option is unknown.
    """
    fair.make(name, **options)
    kind = fair.ROUTERS[name]
    made: RecordedRouter = type(f"Recorded{kind.__name__}", (RecordedRouter, kind), {})(**options)
    made.write = write
    write({"router": name, "options": dict(options)})
    return made


class RecordedRouter(Router):
    """What stands before a router's class to write down its events. See `Router` for what they mean."""

    write: Write

    def join(self, worker: WorkerId, capacity: float = 1.0, *, max_live: int | None = None) -> None:
        super().join(worker, capacity, max_live=max_live)
        self.write({"do": "join", "worker": worker, "capacity": capacity, "max_live": max_live})

    def leave(self, worker: WorkerId, produced: Mapping[RequestId, int] | None = None) -> list[RequestInfo]:
        self.write({"do": "leave", "worker": worker, "produced": dict(produced or {})})
        return super().leave(worker, produced)

    def drain(self, worker: WorkerId) -> None:
        self.write({"do": "drain", "worker": worker})
        super().drain(worker)

    def set_capacity(self, worker: WorkerId, capacity: float) -> None:
        self.write({"do": "set_capacity", "worker": worker, "capacity": capacity})
        super().set_capacity(worker, capacity)

    def forget_prefixes(self, worker: WorkerId) -> None:
        self.write({"do": "forget_prefixes", "worker": worker})
        super().forget_prefixes(worker)

    def dispatch(self, request: RequestInfo, blocks: Sequence[Block], now_s: float = 0.0) -> WorkerId:
        worker = super().dispatch(request, blocks, now_s)
        told = [request.id, request.client, request.seq, request.prompt_tok, request.max_output_tok]
        self.write(
            {
                "do": "dispatch",
                "request": [*told, request.predicted_tok, request.program],
                "blocks": digests(blocks),
                "now_s": now_s,
                "worker": worker,
            }
        )
        return worker

    def admitted(self, id: RequestId, *, extend_tok: int, hit_tok: int) -> None:
        self.write({"do": "admitted", "id": id, "extend_tok": extend_tok, "hit_tok": hit_tok})
        super().admitted(id, extend_tok=extend_tok, hit_tok=hit_tok)

    def ended(self, id: RequestId, output_tok: int) -> None:
        self.write({"do": "ended", "id": id, "output_tok": output_tok})
        super().ended(id, output_tok)

    def withdrawn(self, id: RequestId, output_tok: int) -> None:
        self.write({"do": "withdrawn", "id": id, "output_tok": output_tok})
        super().withdrawn(id, output_tok)


def digests(blocks: Sequence[Block]) -> list[tuple[str, int]]:
    """The blocks with keys of 16 hexadecimal digits, each of which depends on all before it."""
    found, chain = [], b""
    for key, tokens in blocks:
        said = key if isinstance(key, bytes) else repr(key).encode()
        chain = hashlib.blake2b(chain + said, digest_size=8).digest()
        found.append((chain.hex(), tokens))
    return found


@dataclass
class ReplayReport:
    """What a replay found: events, decisions among them, and the first decision that came out differently, if
    one did; there it ends, for what follows in the log presumes it."""

    router: str = ""
    events: int = 0
    decisions: int = 0
    difference: str = ""


def replay(lines: Iterable[str]) -> ReplayReport:
    """Tells a new router what the log says.

    Raises:
      ValueError: the log does not begin with the router it is of, or has a line that is no event.
    """
    found = ReplayReport()
    router: Router | None = None
    for number, text in enumerate(lines, 1):
        try:
            told = json.loads(text)
            if router is None:
                found.router = told["router"]
                router = fair.make(told["router"], **told["options"])
            else:
                found.events += 1
                _repeat(router, told, found, number)
                if found.difference:
                    break
        except (KeyError, TypeError, json.JSONDecodeError) as why:
            raise ValueError(f"line {number} is no line of a router's log: {why!r}") from None
    if router is None:
        raise ValueError("the log is empty")
    return found


def _repeat(router: Router, told: dict[str, Any], found: ReplayReport, number: int) -> None:
    kind = told.pop("do")
    if kind != "dispatch":
        getattr(router, kind)(*_positional(told), **told)
        return
    worker = router.dispatch(RequestInfo(*told["request"]), [tuple(b) for b in told["blocks"]], told["now_s"])
    found.decisions += 1
    if worker != told["worker"]:
        found.difference = f"line {number}: worker {told['worker']} then, {worker} now"


def _positional(told: dict[str, Any]) -> list[Any]:
    """The argument without which no event is."""
    return [told.pop("worker" if "worker" in told else "id")]
