from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.arena.platform.pacer import LiveTurn, Pacer, advance


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30),
    st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_both_sides_show_the_same_number_of_characters_until_one_ends(growth, longest):
    turn, pacer = LiveTurn(["", ""], [False, False]), Pacer(characters=24)
    pacer.add(turn)
    for grown in growth:
        for side in (0, 1):
            turn.texts[side] = "x" * min(longest[side], len(turn.texts[side]) + grown[side])
            turn.ended[side] = len(turn.texts[side]) == longest[side]
        before = turn.position
        pacer.tick()
        assert before <= turn.position <= before + 24
        for side in (0, 1):
            if not turn.ended[side]:
                assert len(turn.shown(side)) == turn.position
    turn.ended = [True, True]
    for _ in range(20):
        pacer.tick()
    assert turn.complete
    assert [turn.shown(0), turn.shown(1)] == turn.texts


def test_a_slow_side_holds_the_fast_one_back():
    assert advance([500, 10], [False, False], 0, 24) == 10
    assert advance([500, 10], [True, False], 0, 24) == 10
    assert advance([500, 10], [False, True], 0, 24) == 24  # the short one has ended
    assert advance([500, 10], [True, True], 490, 24) == 500
