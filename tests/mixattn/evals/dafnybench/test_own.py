"""Our programs verify with their hints and fail without, and what the public check lets pass is counted."""

import pytest

from mixattn.evals.dafny.pool import verify_all
from mixattn.evals.dafnybench.annotator import houdini
from mixattn.evals.dafnybench.checking import check
from mixattn.evals.dafnybench.tasks import own

TASKS = {task.name: task for task in own()}
SOME = ("array_max", "power", "binary_search")


def test_there_are_at_least_forty():
    assert len(TASKS) >= 40


@pytest.mark.parametrize(
    "names", [SOME, pytest.param(tuple(TASKS), marks=pytest.mark.long)], ids=["some", "all"]
)
def test_programs_verify_and_stripped_ones_fail(verify, names):
    whole = dict(verify_all([(n, TASKS[n].original) for n in names], verify))
    bare = dict(verify_all([(n, TASKS[n].stripped) for n in names], verify))
    assert {n for n, found in whole.items() if found.verdict != "verified"} == set()
    assert {n for n, found in bare.items() if found.verdict not in ("failed", "timeout")} == set()


def test_the_author_is_accepted_and_the_bare_program_is_not(verify):
    task = TASKS["power"]
    assert check(task, task.original, verify).accepted
    assert not check(task, task.stripped, verify).accepted
    assert check(task, task.original, verify, "official").accepted


def test_houdini_finds_the_invariants_of_a_sum(verify):
    task = TASKS["triangular_number"]
    found = houdini(task.stripped, verify)
    assert check(task, found, verify).accepted
