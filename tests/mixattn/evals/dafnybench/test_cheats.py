"""The strict check refuses every cheat and no honest solution; the public check does neither."""

import pytest

from mixattn.evals.dafny import strict
from mixattn.evals.dafnybench.cheats import CHEATS, HONEST, SOLUTION, TASK


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused(name):
    assert strict.cheats(SOLUTION, TASK, CHEATS[name])


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_solution_is_not_refused(name):
    assert strict.cheats(SOLUTION, TASK, HONEST[name]) == ()


def test_a_comment_or_string_that_does_not_end_is_refused():
    for end in ("/* no end", 'const s := "no end'):
        assert [c.rule for c in strict.cheats(SOLUTION, TASK, SOLUTION + end)] == ["unreadable"]
