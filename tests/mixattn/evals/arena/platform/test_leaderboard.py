"""The leaderboard is a pure function of stored votes; limits of influence, style, history, honeypots."""

import json
import time

import numpy as np
import pytest

from mixattn.evals.arena.platform.counted import CountedVotes
from mixattn.evals.arena.platform.leaderboard import DAY_S, Counting, Leaderboards, make_board
from mixattn.evals.arena.platform.store import ArenaStore
from mixattn.evals.arena.platform.style_counts import of_conversations

MODELS = ("ant", "bee", "cat", "dog")


def talk(words):
    return [{"role": "assistant", "content": "word " * words}]


def records(n=400, voters=40, seed=0, long="dog", rig=0):
    """Votes by true order, but longer answers win more; the first `rig` are one voter's for the last."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        a, b = rng.permutation(4)[:2]
        lengths = [200 if MODELS[m] == long else int(rng.integers(20, 60)) for m in (a, b)]
        logit = 0.5 * (b - a) + 1.5 * (lengths[0] - lengths[1]) / sum(lengths)
        winner = "model_a" if rng.random() < 1 / (1 + np.exp(-logit)) else "model_b"
        judge = f"v{int(rng.integers(voters))}"
        if i < rig:
            judge = "rigger"
            winner = "model_a" if a == 3 else "model_b" if b == 3 else winner
        found.append(
            {
                **{"model_a": MODELS[a], "model_b": MODELS[b], "winner": winner, "judge": judge},
                **{"category": "other", "language": "en", "counts_s": 86400.0 * (1 + i // 100)},
                "conv_metadata": of_conversations([talk(lengths[0]), talk(lengths[1])]),
            }
        )
    return found


def following(rows):
    """The votes of `records` as a store's."""
    counted = CountedVotes(lambda: None)
    names = ("model_a", "model_b", "winner", "judge", "counts_s", "category", "language", "conv_metadata")
    for row in rows:
        counted._add(*(json.dumps(row[n]) if n == "conv_metadata" else row[n] for n in names))
    counted._read = frozenset
    return counted


def board_of(rows, counting, **options):
    taken, _ = following(rows).snapshot()
    return make_board(taken, taken.where(), counting, **options)


def rating(board):
    return {m["model"]: m["rating"] for m in board.models}


def test_one_voter_moves_no_rating_by_more_than_the_stated_amount():
    honest, rigged = records(1600), [*records(1600), *records(300, rig=300, seed=9)]
    free = Counting(cap=1e9)
    assert rating(board_of(rigged, free))["dog"] - rating(board_of(honest, free))["dog"] > 20
    bounded = board_of(rigged, Counting(cap=1e9, max_move=3.0))
    assert bounded.largest_move == pytest.approx(3.0, rel=0.01)
    # Leaving the rigger out altogether really moves no rating by more than about that.
    without = board_of([r for r in rigged if r["judge"] != "rigger"], Counting(cap=1e9, max_move=3.0))
    moved = [abs(rating(bounded)[m] - rating(without)[m]) for m in MODELS]
    assert max(moved) < 2 * 3.0


def test_with_too_few_voters_the_limit_says_that_it_is_not_kept():
    board = board_of(records(200, voters=2), Counting(cap=1e9, max_move=1.0))
    assert board.largest_move > 1.0


def test_few_voters_are_said_to_be_few():
    assert board_of(records(voters=3), Counting(100.0)).few_voters
    assert not board_of(records(voters=40), Counting(100.0)).few_voters


def test_style_control_lowers_the_model_that_wins_by_length_and_tells_the_places_without_it():
    board, plain = (board_of(records(3000), Counting(100.0), style=style) for style in (True, False))
    assert rating(board)["dog"] < rating(plain)["dog"] - 50
    assert board.style["tokens"]["beta"] > 0
    without = {m["model"]: m["rank"] for m in plain.models}
    assert all(m["places_without"] == without[m["model"]] for m in board.models)


def test_the_win_matrix_is_complementary_from_both_sides():
    board = board_of(records(), Counting(100.0))
    one, other = board.cell("ant", "bee"), board.cell("bee", "ant")
    assert one["win_rate"] + other["win_rate"] == pytest.approx(1)
    assert one["lower"] + other["upper"] == pytest.approx(1)
    assert board.cell("ant", "ant") is None
    assert board.names == [m["model"] for m in board.models]


@pytest.fixture
def store(tmp_path):
    store = ArenaStore(tmp_path / "a.sqlite")
    store.sync_models(dict.fromkeys(MODELS, 1.0), {"dog"})
    yield store
    store.close()


def test_history_ranks_each_day_from_the_votes_that_counted_by_its_end(store):
    rows = records()
    boards = Leaderboards(store, cap=100.0)
    boards._counted = following(rows)
    days = boards.history()
    assert [(d["day"], d["votes"]) for d in days] == [((2 + i) * DAY_S, 100 * (i + 1)) for i in range(4)]
    until = board_of(rows[:200], Counting(100.0)).models
    assert [m["rating"] for m in days[1]["models"]] == [m["rating"] for m in until]
    assert boards.history(days=2) == days[2:]


def counted_voters(boards):
    taken = boards.counted()
    return [taken.voters[v] for v in taken.voter]


def cast(store, models, winner, voter, delay_s=0.0, honeypot=""):
    battle = store.open_battle(
        "s", "battle", models, "hi", language="en", category="other", honeypot=honeypot
    )
    for side in (0, 1):
        store.write(battle, 1, side, "text", "done")
    store.vote(battle, winner, voter, delay_s, "honeypot" if honeypot else None)
    return battle


def test_honeypots_show_who_does_not_look(store):
    for _ in range(6):
        cast(store, ["ant", "ant"], "model_a", "left", honeypot="self")
        cast(store, ["ant", "dog"], "model_b", "left", honeypot="broken")
    cast(store, ["ant", "ant"], "tie", "careful", honeypot="self")
    cast(store, ["dog", "ant"], "model_b", "careful", honeypot="broken")
    boards = Leaderboards(store, cap=100.0)
    assert boards.honeypots() == [
        {"voter": "left", "same": 6, "left": 6, "broken": 6, "for_broken": 6},
        {"voter": "careful", "same": 1, "left": 0, "broken": 1, "for_broken": 0},
    ]
    assert len(boards.counted()) == 0


def test_a_delayed_vote_counts_only_after_its_delay(store):
    boards = Leaderboards(store, cap=100.0)
    cast(store, ["ant", "bee"], "model_a", "v", delay_s=0.3)
    cast(store, ["ant", "bee"], "model_b", "v")
    assert (len(boards.counted()), len(list(store.votes()))) == (1, 1)  # nor does the export tell of it
    time.sleep(0.35)
    assert (len(boards.counted()), len(list(store.votes()))) == (2, 2)


def test_votes_of_an_excluded_voter_are_kept_and_do_not_count(store):
    boards = Leaderboards(store, cap=100.0)
    cast(store, ["ant", "bee"], "model_a", "v")
    cast(store, ["ant", "bee"], "model_b", "w")
    assert len(boards.counted()) == 2
    store.exclude("v", True)
    assert counted_voters(boards) == ["w"]
    assert [r["not_counted"] for r in store.votes()] == ["voter excluded", None]
    store.exclude("v", False)
    assert len(boards.counted()) == 2
    assert [e["kind"] for e in store.events()][-2:] == ["voter excluded", "voter counts again"]
