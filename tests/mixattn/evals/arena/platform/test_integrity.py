"""Limits, proof of work, new answers and the admin's means, through real HTTP."""

import json
import re

import pytest

from mixattn.evals.arena.platform.battle_routes import network_of
from mixattn.evals.arena.platform.work import solved
from tests.mixattn.evals.arena.platform.conftest import SECRET_NAMES, Visitor

BITS = 6


@pytest.fixture(scope="module")
def strict(serve):
    from tests.mixattn.evals.arena.platform.conftest import MODELS

    return serve(MODELS, f"--work_bits={BITS}", "--per_minute_address=6", "--sampling=active", "--max_move=5")


def worked(visitor, prompt="hello"):
    page = visitor.get("/").text
    challenge = re.search(r'name="challenge" value="([^"]+)"', page)[1]
    number = next(str(n) for n in range(10**6) if solved(challenge, str(n), BITS))
    return {"mode": "battle", "prompt": prompt, "challenge": challenge, "work": number}


def test_a_battle_needs_work_once_and_an_address_has_a_limit_over_all_its_sessions(strict):
    visitor = Visitor(strict.url)
    assert visitor.post("/battle", mode="battle", prompt="x").status_code == 403
    fields = worked(visitor)
    assert visitor.post("/battle", **fields).status_code == 200
    assert visitor.post("/battle", **fields).status_code == 403  # the same work twice
    codes = []
    for _ in range(6):
        other = Visitor(strict.url)  # a new session each time
        claimed = {"x-forwarded-for": f"10.0.0.{len(codes)}"}  # an address that a visitor only claims
        other.http.headers.update(claimed)
        codes.append(other.post("/battle", **worked(other)).status_code)
    assert codes == [200] * 5 + [429]


def test_the_pages_say_how_pairs_are_drawn_and_what_a_voter_can_move(strict):
    page = Visitor(strict.url).get("/leaderboard").text
    assert "Active sampling" in page
    assert "may move a rating by more than 5.0 points" in page


def test_addresses_of_one_household_are_one():
    assert network_of("2001:db8:1:2:3::9") == network_of("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("testclient") == "testclient"


def test_answers_can_be_written_anew_and_the_replaced_ones_are_kept(arena):
    import sqlite3

    visitor = Visitor(arena.url)
    path = visitor.battle("write it twice")
    visitor.post(f"{path}/again")
    page = visitor.wait(path)
    assert page.count("Another answer") == 1
    for _ in range(2):
        visitor.post(f"{path}/again")
        visitor.wait(path)
    assert visitor.post(f"{path}/again").status_code == 409  # a limit a turn
    visitor.vote(path)
    assert visitor.post(f"{path}/again").status_code == 409
    db = sqlite3.connect(arena.folder / "arena.sqlite")
    kept = db.execute("SELECT count(*) FROM replaced WHERE battle = ?", (path.rsplit("/", 1)[1],)).fetchone()
    db.close()
    assert kept == (6,)


def test_history_style_and_the_export_with_style_counts(arena):
    visitor = Visitor(arena.url)
    for winner in ("model_a", "model_b", "tie"):
        visitor.vote(visitor.battle(), winner)
    days = visitor.get("/history.json").json()["days"]
    assert {m["model"] for m in days[-1]["models"]} == set(SECRET_NAMES)
    page = visitor.get("/history").text
    assert "<polyline" in page
    assert "style=" not in page  # the policy allows no styles in place
    assert "quokka &lt;b&gt;9y&lt;/b&gt;" in page
    assert "Style control" in visitor.get("/leaderboard?style=on").text
    vote = json.loads(visitor.get("/votes.jsonl").text.splitlines()[-1])
    assert vote["conv_metadata"]["sum_assistant_a_tokens"] > 0


def test_the_admin_excludes_a_voter(serve):
    visitor = Visitor(serve().url)
    for winner in ("model_a", "model_b", "tie"):
        visitor.vote(visitor.battle(), winner)
    voter = json.loads(visitor.get("/votes.jsonl").text.splitlines()[0])["judge"]
    assert visitor.post("/admin", voter=voter, excluded="1").status_code == 403
    visitor.post("/admin", token="a token of the tests")
    assert "Count again" in visitor.post("/admin", voter=voter, excluded="1").text
    assert visitor.get("/leaderboard.json").json()["votes"] == 0
    visitor.post("/admin", voter=voter, excluded="0")
    assert visitor.get("/leaderboard.json").json()["votes"] == 3
