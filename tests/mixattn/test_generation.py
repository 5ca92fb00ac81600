"""Generation equals teacher forcing, and each row is independent of the others."""

import numpy as np
import pytest

from mixattn import generate
from mixattn.cache import Contiguous
from tests.mixattn.tiny import SHORT, logits, model

PROMPTS = [[1, 2, 3], list(range(4, 15)), [3]]
NEW = 20


@pytest.fixture(scope="module")
def greedy():
    return generate(model(SHORT), PROMPTS, NEW)


def test_greedy_generation_is_teacher_forced_argmax(greedy):
    for prompt, new in zip(PROMPTS, greedy):
        row = np.array([prompt + new])
        want = logits(SHORT, np.pad(row, ((0, 0), (0, 40 - row.shape[1]))))[0].argmax(-1)
        assert new == want[len(prompt) - 1 : len(prompt) - 1 + NEW].tolist()


def test_a_row_does_not_depend_on_its_batch_mates():
    together = generate(model(SHORT), PROMPTS, NEW, temperature=0.9, seed=5)
    alone = [generate(model(SHORT), [p], NEW, temperature=0.9, seed=5 + i)[0] for i, p in enumerate(PROMPTS)]
    assert together == alone
    assert together != generate(model(SHORT), PROMPTS, NEW, temperature=0.9, seed=6)


def test_the_cache_does_not_matter(greedy):
    assert generate(model(SHORT), PROMPTS, NEW, cache=Contiguous) == greedy


def test_a_row_ends_with_its_first_stop_id(greedy):
    stop = greedy[0][4]
    for cut, full in zip(generate(model(SHORT), PROMPTS, NEW, stop_ids=[stop]), greedy):
        assert cut == (full[: full.index(stop) + 1] if stop in full else full)


def test_new_tokens_are_streamed_as_they_come(greedy):
    parts = []
    generate(model(SHORT), PROMPTS, NEW, on_tokens=parts.append)
    assert len(parts) > 1
    assert np.concatenate(parts).T.tolist() == greedy


@pytest.mark.parametrize("new", [1, 17])
def test_exactly_the_tokens_asked_for_are_made(greedy, new):
    assert generate(model(SHORT), PROMPTS, new) == [row[:new] for row in greedy]


@pytest.mark.parametrize(
    ("prompts", "why"),
    [([[1], []], "prompt 1 is empty"), ([[61]], r"outside 0\.\.60"), ([[-1]], "outside"), ([], "no prompts")],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, why):
    with pytest.raises(ValueError, match=why):
        generate(model(SHORT), prompts, 3)
