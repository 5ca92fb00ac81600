import time

import pytest

from mixattn.evals.arena.platform import tokens, work
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.store import ArenaStore

BITS = 8


@pytest.fixture
def store(tmp_path):
    store = ArenaStore(tmp_path / "a.sqlite")
    yield store
    store.close()


def solve(challenge, bits=BITS):
    return next(str(n) for n in range(10**6) if work.solved(challenge, str(n), bits))


def test_a_solved_challenge_is_good_once_and_for_its_session(store):
    challenge = work.challenge(store.secret, "me")
    number = solve(challenge)
    with pytest.raises(Refused, match="short computation"):
        work.check(store, "somebody else", challenge, number, BITS)
    work.check(store, "me", challenge, number, BITS)
    with pytest.raises(Refused, match="used already"):
        work.check(store, "me", challenge, number, BITS)


def test_unsolved_forged_and_old_challenges_are_refused(store, monkeypatch):
    challenge = work.challenge(store.secret, "me")
    wrong = next(str(n) for n in range(1000) if not work.solved(challenge, str(n), BITS))
    for number in (wrong, "", "9" * 30):
        with pytest.raises(Refused, match="missing or wrong"):
            work.check(store, "me", challenge, number, BITS)
    forged = tokens.seal(b"another secret", f"x~me~{time.time():.0f}")
    with pytest.raises(Refused, match="short computation"):
        work.check(store, "me", forged, solve(forged), BITS)
    now = time.time()
    monkeypatch.setattr(work.time, "time", lambda: now + 2 * work.VALID_S)
    with pytest.raises(Refused, match="too old"):
        work.check(store, "me", challenge, solve(challenge), BITS)


def test_the_work_doubles_with_every_bit():
    tries = [sum(work.solved("c", str(n), bits) for n in range(4096)) for bits in (3, 4, 5)]
    assert tries == pytest.approx([512, 256, 128], rel=0.3)
