"""Answers being written: one task a side, a time limit each, saved as they grow, shown through the pacer."""

import asyncio
import contextlib
import logging
import time

from mixattn.evals.arena.platform.backends import AnswerEnded, Backends, Messages
from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.pacer import LiveTurn, Pacer
from mixattn.evals.arena.platform.store import BROKEN, DONE, STOPPED, WRITING, ArenaStore

LOG = logging.getLogger("mixattn.arena")
SAVE_EVERY_S = 1.0
LONGEST = 60_000  # characters of an answer


class LiveAnswers:
    """The turns that are being answered, by battle."""

    def __init__(self, store: ArenaStore, pacer: Pacer, limit_s: float, backends: Backends):
        self._store, self._pacer, self._limit_s, self._backends = store, pacer, limit_s, backends
        self._turns: dict[str, LiveTurn] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        # Answers that are being written: when each was saved last, and those with text that is not saved.
        self._saved_s: dict[tuple[str, int, int], float] = {}
        self._grown: dict[tuple[str, int, int], LiveTurn] = {}

    def get(self, battle: str) -> LiveTurn | None:
        return self._turns.get(battle)

    def start(self, battle: str, turn: int, models: list[ArenaModel], talks: list[Messages]) -> None:
        """Begins to answer; returns at once."""
        live = LiveTurn([""] * len(models), [False] * len(models))
        self._turns[battle] = live
        self._pacer.add(live)
        self._tasks[battle] = [
            asyncio.create_task(self._answer(battle, turn, side, model, talk, live))
            for side, (model, talk) in enumerate(zip(models, talks))
        ]

    async def _answer(
        self, battle: str, turn: int, side: int, model: ArenaModel, talk: Messages, live: LiveTurn
    ) -> None:
        status, key = BROKEN, (battle, turn, side)
        try:
            answer = self._backends.stream(model, talk)
            async with asyncio.timeout(self._limit_s), contextlib.aclosing(answer) as pieces:
                async for piece in pieces:
                    live.texts[side] += piece
                    self._grown[key] = live
                    if len(live.texts[side]) > LONGEST:
                        break
            status = DONE
        except asyncio.CancelledError:
            status = STOPPED
        except (AnswerEnded, TimeoutError) as why:
            LOG.warning("an answer of %s ended early: %s", model.name, why)
        except Exception:
            LOG.exception("an answer of %s failed", model.name)
        finally:
            live.ended[side] = True
            self._grown.pop(key, None)
            self._saved_s.pop(key, None)
            self._store.write(battle, turn, side, live.texts[side], status)
            if all(live.ended):
                self._turns.pop(battle, None)
                self._tasks.pop(battle, None)

    def save(self, battle: str | None = None) -> None:
        """Writes new text of answers in one transaction: the first at once, then every SAVE_EVERY_S; of
        `battle`, all. A killed server loses what came since."""
        late_s = time.monotonic() - SAVE_EVERY_S
        due = [key for key in self._grown if key[0] == battle or self._saved_s.get(key, late_s) <= late_s]
        if due:
            self._store.write_all([(*key, self._grown.pop(key).texts[key[2]], WRITING) for key in due])
            self._saved_s |= dict.fromkeys(due, late_s + SAVE_EVERY_S)

    def stop(self, battle: str, side: int | None = None) -> None:
        """Ends one side's answer or all; what was written stays."""
        for number, task in enumerate(self._tasks.get(battle, ())):
            if side is None or number == side:
                task.cancel()

    async def close(self) -> None:
        """Stops everything and saves it."""
        tasks = [task for group in self._tasks.values() for task in group]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
