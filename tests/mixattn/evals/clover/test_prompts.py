"""Reading answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.clover.method import read_method
from mixattn.evals.clover.prompts import block, from_code, from_docstring, says_yes


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("YES", True),
        ("yes, they agree", True),
        ("**Yes.** Both", True),
        ("NO", False),
        ("No: YES would be wrong", False),
        ("NOT YES", None),
        ("YESTERDAY", None),
        ("The answer is YES", None),
        ("", None),
        ("1. ", None),
    ],
)
def test_yes_or_no_is_the_first_word(answer, verdict):
    assert says_yes(answer) is verdict


@given(st.text())
def test_any_answer_can_be_read(answer):
    assert says_yes(answer) in (True, False, None)
    assert isinstance(block(answer), str)
    assert says_yes("NO " + answer) is False


def test_a_fenced_block_is_the_answer():
    assert block("Sure:\n```dafny\nmethod M()\n```\nDone.") == "method M()"
    assert block("```\nopen") == "open"
    assert block(" method M() ") == "method M()"


def test_code_is_shown_with_its_preconditions_and_the_docstring_without_anything_of_the_method():
    method = read_method("method M(x: int) requires x > 7 ensures 8 > 1 { var y := 9; }")
    assert "assert x > 7;" in from_code(method)
    assert "8 > 1" not in from_code(method)
    shown = from_docstring("doc2code", "Words.", method)
    assert "method M(x: int)" in shown
    assert not [hidden for hidden in ("7", "8", "9") if hidden in shown]
