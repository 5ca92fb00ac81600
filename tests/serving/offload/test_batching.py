import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.offload.batching import balance

LENGTHS = [9, 7, 6, 5, 4, 3, 2, 2]


def lengths_of(parts, lengths):
    return [[lengths[i] for i in part] for part in parts]


def test_the_papers_algorithm_on_small_cases():
    full = balance(LENGTHS, micro_batches=2, micro_batch=4, generate_tok=2, kv_tok=100)
    assert lengths_of(full.parts, LENGTHS) == [[9, 5, 3, 2], [7, 6, 4, 2]]
    short = balance(LENGTHS, micro_batches=2, micro_batch=3, generate_tok=2, kv_tok=100)
    assert lengths_of(short.parts, LENGTHS) == [[9, 5, 3], [7, 6, 4]]
    assert short.waiting == (6, 7)


def test_micro_batches_that_are_not_full_are_used():
    found = balance([10, 3, 3, 3], micro_batches=2, micro_batch=4, generate_tok=5, kv_tok=20)
    assert found.parts == ((0,), (1, 2))
    assert found.waiting == (3,)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 6), st.integers(1, 8), st.integers(1, 9))
def test_every_request_has_one_place_and_no_micro_batch_overflows(lengths, m, size, generate_tok):
    found = balance(lengths, micro_batches=m, micro_batch=size, generate_tok=generate_tok, kv_tok=80)
    placed = [i for part in found.parts for i in part]
    assert sorted([*placed, *found.waiting]) == list(range(len(lengths)))
    for part in found.parts:
        assert 1 <= len(part) <= size
        assert sum(lengths[i] for i in part) + generate_tok * len(part) <= 80
    if not found.waiting and len(found.parts) == m:
        open_sums = [sum(lengths[i] for i in part) for part in found.parts if len(part) < size]
        assert not open_sums or max(open_sums) - min(open_sums) <= max(lengths)


def test_a_request_that_can_never_fit_is_refused():
    with pytest.raises(ValueError, match=r"request 1 needs 90 \+ 5 tokens; a micro-batch holds 20"):
        balance([3, 90], micro_batches=1, micro_batch=2, generate_tok=5, kv_tok=20)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="micro_batch is 0"):
        balance([3], micro_batches=1, micro_batch=0, generate_tok=5, kv_tok=20)
