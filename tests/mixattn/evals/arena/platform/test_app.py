"""The platform as a visitor without JavaScript sees it: real process, real HTTP."""

import json
import re
import sqlite3
import threading

import pytest

from mixattn.evals.arena.stats.ranking import Options, rank_models
from mixattn.evals.arena.stats.reading import read_votes
from tests.mixattn.evals.arena.platform.conftest import SECRET_NAMES, Visitor

NAMES = re.compile("zebrafish|quokka", re.I)


def test_the_whole_way_shows_no_name_before_the_vote(visitor):
    visitor.get("/")
    path = visitor.battle()
    visitor.get(f"{path}/stream")
    visitor.get("/static/arena.js")
    visitor.get("/battle/none")
    visitor.post(f"{path}/vote", token="wrong", winner="tie")
    before = list(visitor.received)
    assert any("ends." in text for text in before)
    assert not [text for text in before if NAMES.search(text)]
    revealed = visitor.vote(path, "model_b").text
    assert all(name.replace("<", "&lt;").replace(">", "&gt;") in revealed for name in SECRET_NAMES)
    assert "B is better" in revealed
    board = visitor.get("/leaderboard").text
    assert NAMES.search(board)  # the control: the search does find names


def test_tags_in_prompt_answer_and_name_are_text(visitor):
    path = visitor.battle("<script>alert(1)</script><img src=x onerror=alert(2)>")
    page = visitor.vote(path).text + visitor.get("/leaderboard").text
    assert page.count("<script") == 2  # our own, once a page
    assert "<img" not in page
    assert "<b>9y" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_second_vote_is_409_and_shows_the_first(visitor):
    path = visitor.battle()
    token = visitor.token(path)
    visitor.vote(path, "tie")
    again = visitor.post(f"{path}/vote", token=token, winner="model_a")
    assert again.status_code == 409
    assert "Vote: <strong>tie" in again.text


def test_of_two_tabs_one_vote_counts(visitor):
    path = visitor.battle()
    token = visitor.token(path)
    codes = []

    def vote(winner):
        codes.append(visitor.http.post(f"{path}/vote", data={"token": token, "winner": winner}).status_code)

    tabs = [threading.Thread(target=vote, args=(winner,)) for winner in ("model_a", "model_b")]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert sorted(codes) == [303, 409]


def test_votes_that_are_not_the_visitors_are_refused(arena, visitor):
    path, other = visitor.battle(), Visitor(arena.url)
    token = visitor.token(path)
    assert other.get(path).status_code == 404
    assert other.post(f"{path}/vote", token=token, winner="tie").status_code == 404
    elsewhere = visitor.battle()
    assert visitor.post(f"{elsewhere}/vote", token=token, winner="tie").status_code == 403
    assert visitor.post(f"{path}/vote", token=token, winner="mine").status_code == 400
    forged = visitor.http.post(
        f"{path}/vote",
        data={"token": token, "winner": "tie"},
        headers={"origin": "https://elsewhere.example"},
    )
    assert forged.status_code == 403
    assert visitor.vote(path, "tie").status_code == 200


def test_bad_messages_are_refused(visitor):
    assert visitor.post("/battle", mode="battle", prompt="  ").status_code == 400
    assert visitor.post("/battle", mode="battle", prompt="x" * 30_000).status_code == 413
    assert visitor.post("/battle", mode="battle", prompt="x" * 200_000).status_code == 413
    assert visitor.post("/battle", mode="direct", prompt="x", model_a="nobody").status_code == 404
    assert visitor.post("/battle", mode="other", prompt="x").status_code == 400


def test_further_turns_then_the_vote_ends_the_battle(visitor):
    path = visitor.battle()
    visitor.post(f"{path}/turn", prompt="and now?")
    page = visitor.wait(path)
    assert page.count("and now?") == 1
    assert page.count("Another answer") == 2
    visitor.vote(path)
    assert visitor.post(f"{path}/turn", prompt="more").status_code == 409


def test_named_models_and_direct_chat_show_names_and_do_not_count(visitor):
    fields = {"mode": "side by side", "model_a": SECRET_NAMES[0], "model_b": SECRET_NAMES[1]}
    path = visitor.battle(**fields)
    assert "zebrafish" in visitor.get(path).text
    visitor.vote(path)
    assert "zebrafish" in visitor.get(visitor.battle(mode="direct", model_a=SECRET_NAMES[0])).text
    votes = [json.loads(line) for line in visitor.get("/votes.jsonl").text.splitlines()]
    assert [vote["anony"] for vote in votes if vote["question_id"] == path.split("/")[-1]] == [False]


def test_a_conversation_is_shared_by_link_after_the_vote(arena, visitor):
    path = visitor.battle("a prompt to share")
    assert visitor.post(f"{path}/share").status_code == 409
    visitor.vote(path)
    shared = visitor.post(f"{path}/share").url.path
    page = Visitor(arena.url).get(shared)
    assert page.status_code == 200
    assert "a prompt to share" in page.text
    assert "token" not in page.text


def test_the_export_is_a_votes_file(visitor, tmp_path):
    for winner in ("model_a", "model_b", "tie"):
        visitor.vote(visitor.battle(), winner)
    file = tmp_path / "votes.jsonl"
    file.write_text(visitor.get("/votes.jsonl?conversations").text)
    votes = read_votes(file, ["judge", "pair_probability"])
    assert len(votes) >= 3
    assert set(votes.columns["pair_probability"]) == {1.0}
    assert {m["model"] for m in rank_models(votes, Options())["models"]} == set(SECRET_NAMES)


def test_the_admin_needs_the_token_and_switches_models(serve):
    visitor = Visitor(serve().url)
    assert visitor.post("/admin", model=SECRET_NAMES[0], enabled="0").status_code == 403
    assert visitor.post("/admin", token="a guess of the token").status_code == 403
    assert "Switch off" in visitor.post("/admin", token="a token of the tests").text
    assert "Switch on" in visitor.post("/admin", model=SECRET_NAMES[0], enabled="0").text
    assert visitor.post("/battle", mode="battle", prompt="x").status_code == 503
    log = visitor.get("/log.json").json()["events"]
    assert [event["kind"] for event in log] == ["added", "added", "sampling", "off", "sampling"]
    assert log[2]["detail"]["pairs"] == [[*sorted(SECRET_NAMES), 1.0]]
    assert log[4]["detail"]["pairs"] == []


def test_every_page_has_the_strict_policy(visitor):
    for path in ("/", "/leaderboard", "/nowhere", "/static/arena.css"):
        policy = visitor.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy


BROKEN = """
[[model]]
name = "zebrafish-a"
scripted = "one two three four five six seven"
delay_s = 0.02
fails = 4
[[model]]
name = "zebrafish-b"
base_url = "http://127.0.0.1:9/v1"
"""


def test_an_answer_that_dies_ends_only_its_side(serve):
    visitor = Visitor(serve(BROKEN).url)
    path = visitor.battle()
    page = visitor.get(path).text
    assert page.count("This answer ended early") == 2
    assert "one two three four" in page
    assert not [text for text in visitor.received if "zebrafish" in text or "127.0.0.1:9" in text]
    assert "zebrafish-b" in visitor.vote(path, "tie (bothbad)").text


LEAKING = """
[[model]]
name = "zebrafish-a"
scripted = "I am Z e b r a f i s h, trained with care."
[[model]]
name = "quokka-b"
scripted = "I do not say."
"""


def test_a_vote_on_a_leaked_battle_is_kept_and_not_counted(serve):
    visitor = Visitor(serve(LEAKING).url)
    visitor.vote(visitor.battle())
    (vote,) = (json.loads(line) for line in visitor.get("/votes.jsonl").text.splitlines())
    assert vote["not_counted"] == "a name leaked"
    assert visitor.get("/leaderboard.json").json()["votes"] == 0


SLOW = """
[[model]]
name = "zebrafish-a"
scripted = "{long}"
delay_s = 0.2
[[model]]
name = "quokka-b"
scripted = "{long}"
delay_s = 0.2
""".format(long="word " * 200)


def test_stop_time_limit_and_early_vote(serve):
    server = serve(SLOW, "--answer_limit_s=2", "--per_minute=4")
    visitor = Visitor(server.url)
    path = visitor.post("/battle", mode="battle", prompt="one").url.path
    assert visitor.vote(path).status_code == 409  # nothing to judge yet
    while "word" not in visitor.get(path).text:
        pass
    assert "Vote:" in visitor.vote(path).text  # before the answers end
    path = visitor.post("/battle", mode="battle", prompt="two").url.path
    visitor.post(f"{path}/stop")
    assert "stopped" in visitor.wait(path)
    path = visitor.battle("three")
    assert visitor.get(path).text.count("This answer ended early") == 2
    visitor.battle("four")
    assert visitor.post("/battle", mode="battle", prompt="five").status_code == 429


def test_kill_9_loses_no_acknowledged_vote_and_no_answer(serve):
    server = serve(SLOW)
    visitor = Visitor(server.url)
    voted = visitor.post("/battle", mode="battle", prompt="one").url.path
    while "word" not in visitor.get(voted).text:
        pass
    assert visitor.vote(voted, "tie").status_code == 200
    writing = visitor.post("/battle", mode="battle", prompt="two").url.path
    while "word" not in visitor.get(writing).text:
        pass
    server.kill()
    server.start()
    visitor.http.base_url = server.url
    assert "Vote: <strong>tie" in visitor.get(voted).text
    page = visitor.get(writing).text
    assert page.count("This answer ended early") == 2
    assert page.count("word") >= 2
    assert visitor.vote(writing, "model_b").status_code == 200
    votes = [json.loads(line)["winner"] for line in visitor.get("/votes.jsonl").text.splitlines()]
    assert votes == ["tie", "model_b"]


def test_the_log_and_the_votes_only_grow(serve):
    server = serve()
    visitor = Visitor(server.url)
    visitor.vote(visitor.battle())
    db = sqlite3.connect(server.folder / "arena.sqlite")
    for change in ("DELETE FROM event", "UPDATE event SET kind = 'x'", "DELETE FROM vote"):
        with pytest.raises(sqlite3.DatabaseError, match=r"only grows|are kept"):
            db.execute(change)
    db.close()


def test_a_wrong_models_file_is_one_sentence(run_module, tmp_path):
    file = tmp_path / "models.toml"
    file.write_text("[[model]\n")
    done = run_module("mixattn.evals", "arena", "serve", f"--models={file}", f"--db={tmp_path}/a.sqlite")
    assert done.returncode == 2
    assert "not valid TOML" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.model
@pytest.mark.long
def test_a_checkpoint_answers_in_a_battle(serve):
    from pathlib import Path

    model = Path(__file__).resolve().parents[5] / "models" / "smollm2"
    if not (model / "config.json").exists():
        pytest.skip("needs models/smollm2 (make model)")
    visitor = Visitor(
        serve(
            f'[[model]]\nname = "a"\nengine = "{model}"\n[[model]]\nname = "b"\nscripted = "A fixed one."\n'
        ).url
    )
    page = visitor.get(visitor.battle("What is the capital of France?")).text
    assert "Paris" in page
    assert "This answer ended early" not in page
