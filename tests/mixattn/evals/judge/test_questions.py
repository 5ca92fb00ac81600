"""Our own questions: their number, their form, and that the references are right where a program can tell."""

from collections import Counter
from itertools import islice, permutations

import pytest

from mixattn.evals.judge.bench import GRADED, Bench
from mixattn.evals.judge.commands.questions import OWN

BENCH = Bench(OWN)
QUESTIONS = BENCH.questions()


def test_there_are_ten_questions_of_two_turns_in_each_of_eight_categories():
    assert set(Counter(question.category for question in QUESTIONS).values()) == {10}
    assert len({question.category for question in QUESTIONS}) == 8
    assert all(len(question.turns) == 2 for question in QUESTIONS)
    assert len({turn for question in QUESTIONS for turn in question.turns}) == 160


def test_graded_questions_have_references_and_only_they():
    references = BENCH.references("any judge", QUESTIONS)
    assert set(references) == {question.id for question in QUESTIONS if question.category in GRADED}
    assert all(len(turns) == 2 and all(turns) for turns in references.values())


def defined(name: str) -> dict:
    """What the Python of the reference that defines `name` defines."""
    references = BENCH.references("any judge", QUESTIONS)
    texts = [
        text for turns in references.values() for text in turns if f"def {name}(" in text or name in text
    ]
    text = next(text for text in texts if f"def {name}(" in text or f"class {name}" in text)
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(("def ", "class ", "from ")))
    kept = []
    for line in lines[start:]:
        if line and not line.startswith((" ", "def ", "class ", "from ")):
            break
        kept.append(line)
    space: dict = {}
    exec("\n".join(kept), space)  # noqa: S102  our own file
    return space[name]


def test_reference_programs_do_what_the_questions_ask():
    runs, unruns = defined("runs"), defined("unruns")
    assert runs("aab") == [("a", 2), ("b", 1)]
    assert unruns(runs("xyyz")) == "xyyz"
    median = defined("median")
    assert (median([3, 1, 2]), median([4, 1, 2, 3])) == (2, 2.5)
    with pytest.raises(ValueError):
        median([])
    ok, fault = defined("ok"), defined("fault")
    assert [ok(text) for text in ("([])", ")(", "([)]", "(")] == [True, False, False, False]
    assert [fault(text) for text in ("([])", ")(", "([)]", "a(")] == [-1, 0, 2, 1]
    assert defined("merge")([(5, 6), (1, 2), (2, 4)]) == [(1, 4), (5, 6)]
    cache = defined("LRU")(2)
    for key in "ab":
        cache.put(key, key)
    cache.get("a")
    cache.put("c", "c")
    assert [cache.get(key) for key in "abc"] == ["a", None, "c"]
    assert list(islice(defined("primes")(), 8)) == [2, 3, 5, 7, 11, 13, 17, 19]


def test_reference_numbers_are_right():
    references = BENCH.references("any judge", QUESTIONS)
    of = {question.turns[0][:20]: references[question.id] for question in QUESTIONS if question.graded}
    first, second = of["What is the sum of a"]
    numbers = [n for n in range(1, 201) if n % 3 == 0 and n % 5]
    assert (str(sum(numbers)) in first, str(len(numbers)) in second) == (True, True)
    words = {"".join(letters) for letters in permutations("LEVEL")}
    first, second = of["In how many ways can"]
    assert (f"= {len(words)}." in first, f"= {sum('LL' in w for w in words)}." in second) == (True, True)
    assert f"{7**100 % 100:02}." in of["Find the remainder o"][1]
