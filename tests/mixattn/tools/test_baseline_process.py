"""A process of another environment that answers queries, one JSON line each way."""

import sys

import pytest

from mixattn.tools.baseline_process import peer

DOUBLES = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"twice": 2 * json.loads(line)["x"]}), flush=True)
"""


def test_every_question_is_answered_in_turn():
    with peer("the other side", [sys.executable, "-c", DOUBLES]) as ask:
        assert [ask(x=x)["twice"] for x in (1, 2, 3)] == [2, 4, 6]


def test_a_side_that_ends_says_so_by_name():
    ends = [sys.executable, "-c", "input(); raise SystemExit(3)"]
    said = pytest.raises(ValueError, match="the other side ended with code 3")
    with peer("the other side", ends) as ask, said:
        ask(x=1)


def test_a_side_that_cannot_be_started_is_one_sentence():
    with pytest.raises(ValueError, match="no/such/python cannot be started"), peer("x", ["no/such/python"]):
        pass
