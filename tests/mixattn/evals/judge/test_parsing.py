"""Verdicts in replies: FastChat's semantics as a golden table, and nothing ever raises."""

import ast
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixattn.evals.judge import parsing

PAIR = [
    ("[[A]]", "A", "A"),
    ("[[B]]", "B", "B"),
    ("[[C]]", "tie", "tie"),
    ("I first thought [[A]], but [[B]]", "A", "B"),
    ("[[B]] then again [[A]]", "A", "A"),
    ("[[C]] or [[B]]", "B", "B"),
    ("```\n[[B]]\n```", "B", "B"),
    ("[[a]]", "error", "error"),
    ("[[ A ]]", "error", "error"),
    ("[[**A**]]", "error", "error"),
    ("**[[A]]**", "A", "A"),
    ("[A]", "error", "error"),
    ("[[[A]]]", "A", "A"),
    ("[[A>B]]", "error", "error"),
    ("", "error", "error"),
    ("$ERROR$", "error", "error"),
]
RATING = [
    ("Rating: [[8]]", 8),
    ("Rating: [[7.5]]", 7.5),
    ("[[10.0]]", 10.0),
    ("[[10.]]", 10.0),
    ("[[11]]", 11),
    ("[[0]]", 0),
    ("[[3]] no, [[4]]", 3),
    ("[5]", 5),
    ("[5] and [[6]]", 6),
    ("[[8/10]]", -1),
    ("[[ 7 ]]", -1),
    ("[[-3]]", -1),
    ("[[1e3]]", -1),
    ("10", -1),
    ("[[**9**]]", -1),
    ("[[٣]]", -1),
    ("", -1),
]


@pytest.mark.parametrize(("reply", "first", "last"), PAIR)
def test_labels_are_read_in_fastchats_order_or_from_the_end(reply, first, last):
    assert parsing.pairwise(reply) == first
    assert parsing.pairwise(reply, "last") == last


@pytest.mark.parametrize(("reply", "rating"), RATING)
def test_ratings_are_read_as_fastchat_reads_them(reply, rating):
    found = parsing.rating(reply)
    assert found == rating
    assert isinstance(found, int) == isinstance(rating, int)


def test_a_rating_out_of_span_counts_as_none_only_if_asked():
    assert [parsing.rating(f"[[{n}]]", span=(1, 10)) for n in (0, 1, 10, 11)] == [-1, 1, 10, -1]
    assert parsing.rating("[[3]] then [[9]]", "last") == 9


@pytest.mark.parametrize(
    ("reply", "slot"),
    [
        ("[[8, 7]]", "A"),
        ("[[7,8.5]]", "B"),
        ("[[8,8.1]]", "tie"),
        ("[[8,8.2]]", "B"),
        ("[6, 7]", "B"),
        ("[[8]]", "error"),
    ],
)
def test_two_scores_within_a_tenth_are_a_tie(reply, slot):
    assert parsing.two_scores(reply) == slot


@pytest.mark.parametrize(
    ("reply", "label", "slot"),
    [
        ("[[A>>B]]", "[[A>>B]]", "A"),
        ("maybe [[A=B]]; no: [[B>A]]", "[[B>A]]", "B"),
        ("[[A=B]]", "[[A=B]]", "tie"),
        ("[[A]]", "error", "error"),
    ],
)
def test_five_labels(reply, label, slot):
    assert parsing.five_labels(reply, "last") == label
    assert parsing.slot_of_label(label) == slot


def oracle_rating(reply):
    """FastChat's code, for ASCII digits."""
    match = re.search(r"\[\[(\d+\.?\d*)\]\]", reply, re.ASCII) or re.search(
        r"\[(\d+\.?\d*)\]", reply, re.ASCII
    )
    try:
        return ast.literal_eval(match.groups()[0]) if match else -1
    except SyntaxError:  # 007: FastChat ends with a traceback
        return float(match.groups()[0])


def oracle_pair(reply):
    for label, slot in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")):
        if label in reply:
            return slot
    return "error"


BRACKETS = st.lists(
    st.one_of(
        st.sampled_from(["[", "]", "[[", "]]", "A", "B", "C", "8", "7.5", ".", ",", " ", ">"]), st.text()
    )
).map("".join)


@given(BRACKETS)
@example("[" * 50 + "8" + "]" * 50)
def test_the_parser_never_raises_and_equals_the_oracle(reply):
    assert parsing.pairwise(reply) == oracle_pair(reply)
    assert parsing.rating(reply) == oracle_rating(reply)
    assert parsing.pairwise(reply, "last") in ("A", "B", "tie", "error")
    assert parsing.two_scores(reply) in ("A", "B", "tie", "error")
    assert parsing.five_labels(reply) in (*parsing.FIVE, "error")


def test_a_megabyte_is_read_in_linear_time():
    began = time.process_time()
    for reply in ("[[" + "1" * 1_000_000, "[[1" * 300_000, "[" * 1_000_000, "[[" + "9" * 1_000_000 + "]]"):
        assert parsing.rating(reply) == -1
        assert parsing.two_scores(reply) == "error"
        assert parsing.pairwise(reply) == "error"
    assert time.process_time() - began < 5  # quadratic matching takes hours here
