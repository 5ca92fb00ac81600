"""Windows of long texts, and answers that are asked once."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.longcontext.policies import KeepPolicy
from serving.evals.harness.answers import AnswerBook
from serving.evals.harness.choices import EXAMPLES, items
from serving.evals.harness.jobs import Score, ScoreJob, WriteJob, fingerprint, windows

POLICIES = [KeepPolicy("full"), KeepPolicy("h2o", 0.2)]
JOBS = [ScoreJob(POLICIES[0], (1, 2, 3), (i,)) for i in range(4)] + [WriteJob(POLICIES[0], (1, 2), 5)]


@given(st.integers(0, 60), st.integers(1, 20))
def test_windows_predict_each_token_once_behind_what_came_before_it(length, most):
    ids = list(range(100, 100 + length))
    pieces = list(windows(ids, 7, most))
    assert [id for _, continuation in pieces for id in continuation] == ids
    text, at = [7, *ids], 1
    for context, continuation in pieces:
        assert len(context) + len(continuation) <= most + 1
        assert list(context) == text[at - len(context) : at]
        at += len(continuation)
    if len(pieces) > 1:
        assert sum(map(len, pieces[-1])) == most + 1, "the last has as much context as fits"


class Recording:
    """Answers with the job's place in the order it was asked; stops after `most` jobs."""

    def __init__(self, most=100):
        self.asked, self.most = [], most

    def run(self, jobs, on_answer):
        for place, job in enumerate(jobs):
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(job)
            number = len(self.asked)
            on_answer(place, f"text {number}" if isinstance(job, WriteJob) else Score(-float(number), True))


def test_a_job_is_asked_once_under_every_policy_in_a_row():
    runner = Recording()
    book = AnswerBook(runner, POLICIES)
    first = book.answers(JOBS)
    assert [job.policy for job in runner.asked] == POLICIES * len(JOBS)
    assert [job.context for job in runner.asked[:2]] == [JOBS[0].context] * 2
    others = [dataclasses.replace(job, policy=POLICIES[1]) for job in JOBS]
    assert book.answers(others) != first
    assert book.answers(JOBS) == first
    assert len(runner.asked) == 2 * len(JOBS)
    assert isinstance(first[0], Score)
    assert isinstance(first[-1], str)


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, torn):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        AnswerBook(Recording(most=7), POLICIES, path).answers(JOBS)
    if torn:
        path.write_bytes(path.read_bytes()[:-5])
    told, rest = [], Recording()
    book = AnswerBook(rest, POLICIES, path, lambda known, wanted: told.append((known, wanted)))
    answered = book.answers(JOBS)
    assert len(rest.asked) == 3 + torn
    assert told[-1] == (10, 10)
    again = Recording()
    assert AnswerBook(again, POLICIES, path).answers(JOBS) == answered
    assert again.asked == []


def test_jobs_that_differ_in_anything_have_other_fingerprints():
    write = JOBS[-1]
    changes = {"max_tokens": 6, "until": ("a",), "temperature": 1.0, "top_p": 0.5, "top_k": 3, "seed": 1}
    variants = [write, *(dataclasses.replace(write, **{name: value}) for name, value in changes.items())]
    variants += [dataclasses.replace(write, policy=POLICIES[1]), dataclasses.replace(write, context=(2, 1))]
    variants += [JOBS[0], dataclasses.replace(JOBS[0], rolling=True), ScoreJob(POLICIES[0], (1, 2), (3, 0))]
    assert len({fingerprint(job) for job in variants}) == len(variants)
    assert fingerprint(write) == fingerprint(dataclasses.replace(write))


def test_own_choices_have_four_different_endings_and_a_right_one_at_every_place():
    rows = items()
    assert len(rows) - EXAMPLES == 64
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert len({row["question"] for row in rows}) == len(rows)
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}
