"""What the arena's database tells, without changing it."""

import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from mixattn.evals.arena.platform.battle import BattleState

USER = -1  # position of the user's messages
WRITING, DONE, STOPPED, BROKEN = "writing", "done", "stopped", "broken"
VOTES = (
    "vote JOIN battle ON battle.id = vote.battle "
    "JOIN side a ON a.battle = battle.id AND a.position = 0 "
    "JOIN side b ON b.battle = battle.id AND b.position = 1"
)


class ArenaReader:
    """Reads one arena's database over a connection of its own. A connection belongs to one thread at a time:
    shared, its reads would see half of another's transaction, and wait for it."""

    def __init__(self, db: sqlite3.Connection):
        db.row_factory = sqlite3.Row
        self._db = db

    def close(self) -> None:
        self._db.close()

    def _one(self, sql: str, *values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(sql, values)]

    def models(self) -> list[dict[str, Any]]:
        return self._all("SELECT * FROM model ORDER BY name")

    def events(self) -> list[dict[str, Any]]:
        """The public log, oldest first."""
        rows = self._all("SELECT * FROM event ORDER BY number")
        return [row | {"detail": json.loads(row["detail"])} for row in rows]

    def replaced(self, battle: str) -> list[str]:
        """The answers that new ones replaced."""
        return [row["content"] for row in self._all("SELECT content FROM replaced WHERE battle = ?", battle)]

    def battle(self, battle: str) -> dict[str, Any] | None:
        """A battle with `models`, `messages` and `vote` (None before it)."""
        row = self._one("SELECT * FROM battle WHERE id = ?", battle)
        if row is None:
            return None
        sides = self._all("SELECT model FROM side WHERE battle = ? ORDER BY position", battle)
        messages = self._all("SELECT * FROM message WHERE battle = ? ORDER BY turn, position", battle)
        votes = self._all("SELECT * FROM vote WHERE battle = ?", battle)
        found = {"models": [side["model"] for side in sides], "messages": messages}
        return dict(row) | found | {"vote": votes[0] if votes else None}

    def shared(self, share: str) -> dict[str, Any] | None:
        row = self._one("SELECT id FROM battle WHERE share = ?", share)
        return None if row is None else self.battle(row["id"])

    def state(self, battle: str) -> BattleState:
        """Where a stored battle stands."""
        turns = self._one("SELECT turns FROM battle WHERE id = ?", battle)["turns"]
        sql = "SELECT content, status FROM message WHERE battle = ? AND turn = ? AND position >= 0 "
        rows = self._all(sql + "ORDER BY position", battle, turns)
        vote = self._one("SELECT winner FROM vote WHERE battle = ?", battle)
        ended = tuple(row["status"] != WRITING for row in rows)
        shown = tuple(done or bool(row["content"]) for done, row in zip(ended, rows))
        return BattleState(turns, shown, ended, vote["winner"] if vote else None)

    def recent_battles(self, who: str, since_s: float, *, by: str = "session") -> int:
        """Battles begun since a time by one session, or from one `address`."""
        column = {"session": "session", "address": "address"}[by]
        sql = f"SELECT count(*) FROM battle WHERE {column} = ? AND started_s > ?"
        return int(self._one(sql, who, since_s)[0])

    def excluded(self) -> set[str]:
        return {row["voter"] for row in self._all("SELECT voter FROM excluded")}

    def times_asked(self, session: str, prompt: str) -> int:
        """How often this session began a battle with this prompt."""
        sql = (
            "SELECT count(*) FROM battle JOIN message ON message.battle = battle.id "
            "WHERE session = ? AND turn = 1 AND position = -1 AND content = ?"
        )
        return int(self._one(sql, session, prompt)[0])

    def votes(self, *, honeypots: bool = False) -> Iterator[dict[str, Any]]:
        """Votes in the public format whose delay has passed, oldest first; those that do not count say why.

        Args:
          honeypots: only those of honeypot battles.
        """
        sql = (
            "SELECT battle.id AS question_id, a.model AS model_a, b.model AS model_b, winner, "
            "vote.voter AS judge, mode = 'battle' AS anony, language, voted_s AS tstamp, counts_s, "
            "pair_probability, category, turns AS turn, honeypot, kind, style AS conv_metadata, "
            "coalesce(not_counted, CASE WHEN excluded.voter IS NULL THEN NULL ELSE 'voter excluded' END) "
            f"AS not_counted FROM {VOTES} LEFT JOIN excluded ON excluded.voter = vote.voter "
            "WHERE counts_s <= ? "
        )
        sql += "AND honeypot = 1 " * honeypots + "ORDER BY vote.rowid"
        for row in self._db.execute(sql, (time.time(),)):
            yield _public(dict(row))

    def countable(self, after: int, limit: int) -> tuple[int, list[tuple[Any, ...]]]:
        """At most `limit` votes beyond number `after`: the number of the last, and of those that count now or
        once their delay has passed (model_a, model_b, winner, voter, counts_s, category, language, style).

        Votes of excluded voters are among them; exclusion can be undone.
        """
        sql = (
            "SELECT vote.rowid, not_counted IS NULL AND mode = 'battle' AND honeypot = 0, a.model, b.model, "
            f"winner, vote.voter, counts_s, category, language, style FROM {VOTES} WHERE vote.rowid > ? "
            "ORDER BY vote.rowid LIMIT ?"
        )
        rows = self._db.execute(sql, (after, limit)).fetchall()
        return (rows[-1][0] if rows else after), [tuple(row)[2:] for row in rows if row[1]]

    def conversations(self, battle: str) -> list[list[dict[str, str]]]:
        """The conversation of each side, as role and content."""
        found = self.battle(battle)
        sides = range(len(found["models"])) if found else ()
        return [
            [
                {"role": "user" if m["position"] == USER else "assistant", "content": m["content"]}
                for m in (found or {})["messages"]
                if m["position"] in (USER, side)
            ]
            for side in sides
        ]


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """A vote as the public format has it; without style counts where an old vote lacks them."""
    style = json.loads(row.pop("conv_metadata") or "{}")
    kind = row.pop("kind")
    row |= {"anony": bool(row["anony"]), "honeypot": kind or bool(row["honeypot"])}
    return row | ({"conv_metadata": style} if style else {})
