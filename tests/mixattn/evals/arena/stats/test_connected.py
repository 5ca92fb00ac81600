import numpy as np
import pytest

from mixattn.evals.arena.stats.connected import check_connected, is_connected
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.votes import from_arrays
from tests.mixattn.evals.arena.worlds import some_votes

NAMES = ("ant", "bee", "cat", "dog", "eel")


def votes(*triples):
    return from_arrays(NAMES, *np.array(triples).T)


RING = [(0, 1, 2), (1, 2, 2), (2, 0, 2)]  # ant > bee > cat > ant


def test_a_ring_has_finite_ratings_and_a_tie_counts_both_ways():
    whole = votes(*RING, (2, 3, 1), (3, 4, 1))
    check_connected(count(whole), NAMES)
    assert is_connected(count(whole))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([(3, 0, 2), (4, 0, 1)], "dog is undefeated"),
        ([(3, 0, 0), (4, 0, 1)], "dog is without a win"),
        ([(3, 0, 2), (4, 0, 0)], "dog is undefeated and eel is without a win"),
        ([(3, 4, 1), (3, 0, 2)], "dog, eel are undefeated"),
        ([(3, 4, 1)], "2 separate islands that never met: dog, eel and the other 3"),
    ],
)
def test_the_models_to_blame_are_listed(extra, message):
    broken = votes(*RING, *extra)
    assert not is_connected(count(broken))
    with pytest.raises(ValueError, match=message):
        check_connected(count(broken), NAMES)


def test_ordinary_votes_pass():
    assert is_connected(count(some_votes()))
