import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.arena.platform.battle import ANSWERED, MAX_TURNS, NEW, VOTED, WINNERS, BattleState, Refused

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("show"), st.integers(0, 1)),
        st.tuples(st.just("end"), st.integers(0, 1)),
        st.tuples(st.just("ask"), st.none()),
        st.tuples(st.just("vote"), st.sampled_from([*WINNERS, "mine", ""])),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_battle_only_moves_forward_and_has_one_vote(steps):
    state, order = BattleState(), {NEW: 0, ANSWERED: 1, VOTED: 2}
    for name, value in steps:
        before, allowed = state, True
        try:
            state = getattr(state, name)() if value is None else getattr(state, name)(value)
        except Refused as why:
            allowed = why.status in (400, 409)  # a wrong word, or a wrong moment
            state = before
        assert allowed
        if before.winner is not None:
            assert state.winner == before.winner
        if state.winner is not None:
            assert state.name == VOTED
            assert all(state.shown)
            assert state.winner in WINNERS
        if state.turns == before.turns:
            assert order[state.name] >= order[before.name]
        assert state.turns <= MAX_TURNS


def test_a_vote_needs_something_on_both_sides():
    with pytest.raises(Refused, match="nothing to judge"):
        BattleState().show(0).vote("tie")
    assert BattleState().show(0).end(1).vote("tie").winner == "tie"
