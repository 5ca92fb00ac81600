"""Budgets of rows and layers: exact shares, and refusals."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn import ModelConfig, kv_bytes
from mixattn.cache import KeptBy
from mixattn.keep import Keep
from mixattn.keep.allocators import ALLOCATORS
from mixattn.keep.budget import part

SHARES = st.fractions(min_value=Fraction(1, 10_000), max_value=1, max_denominator=10_000)


@given(st.integers(0, 200_000), SHARES)
def test_a_part_is_the_exact_product_rounded_down(n, share):
    assert part(n, share) == n * share // 1
    assert int(part(jnp.int32(n), share)) == n * share // 1


@given(st.integers(1, 1000), st.integers(1, 100))
def test_a_share_that_is_no_float_still_gives_whole_keys(tens, percent):
    prompt = 100 * tens
    assert Keep(budget=percent / 100).total(prompt, 0) == tens * percent


def test_a_fifth_of_200_is_40_however_the_float_is_computed():
    for share in (0.2, 1 - 0.8, 0.6 / 3, np.float64(0.7) - 0.5):
        assert Keep(budget=float(share)).total(200, 0) == 40


@given(st.integers(1, 500), st.one_of(st.integers(1, 600), st.floats(0.01, 1)), st.integers(0, 8))
def test_heavy_recent_and_sinks_are_the_whole_budget(total, recent, sinks):
    total += sinks
    keep = Keep(budget=0.5, recent=recent, sinks=sinks)
    heavy, newest, first = keep.split(total)
    assert (heavy + newest + first, first) == (total, sinks)
    assert heavy >= 0
    assert newest >= 1
    arrays = keep.split(jnp.full(2, total))
    assert [int(x[1]) for x in arrays] == [heavy, newest, first]


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("layers", [1, 2, 7, 30])
def test_the_layers_parts_average_to_one_and_do_not_grow(name, layers):
    parts = [ALLOCATORS[name](i, layers) for i in range(layers)]
    assert sum(parts) == layers
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] > 0


def test_a_share_of_the_total_counts_tokens_to_come():
    assert Keep(budget=0.1, share_of="total").total(300, 200) == 50
    assert Keep(budget=0.1).total(300, 200) == 30


@pytest.mark.parametrize("wiring", ["0_1_2s_2s", "0s_1_1"])
@pytest.mark.parametrize("keep", [Keep(budget=12), Keep(budget=0.25), Keep(budget=0.5, allocation="pyramid")])
def test_the_bytes_of_the_formula_are_those_of_the_arrays(wiring, keep):
    config = ModelConfig(
        n_layers=wiring.count("_") + 1,
        kv_wiring=wiring,
        window=8,
        d_model=16,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=16,
        vocab_size=11,
        dtype="float32",
    )
    cache = KeptBy(keep, prompt=64).init(config, 1, 64)
    assert sum(cache.nbytes().values()) == kv_bytes(config, 64, "float32", keep=keep)
    assert kv_bytes(config, 64, "float32", keep=keep) < kv_bytes(config, 64, "float32")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scorer": "h20"}, "'h20' is not one of h2o, "),
        ({"budget": 0}, "budget is 0 keys; at least 1"),
        ({"budget": -3}, "budget is -3 keys"),
        ({"budget": 0.0}, "share of 0.0"),
        ({"budget": 1.5}, "share of 1.5"),
        ({"budget": float("nan")}, "share of nan"),
        ({"budget": True}, "budget is True"),
        ({"budget": "40"}, "budget is '40'"),
        ({"recent": 0}, "recent is 0 keys; at least 1"),
        ({"sinks": -1}, "sinks is -1"),
        ({"budget": 4, "recent": 5}, "the budget is 4 keys; 0 sinks and the 5 recent keys need 5"),
        (
            {"budget": 6, "recent": 4, "sinks": 3},
            "the budget is 6 keys; 3 sinks and the 4 recent keys need 7",
        ),
        ({"budget": 4, "sinks": 4}, "4 keys, and 4 sinks and a recent key need 5"),
        ({"scorer": "streaming", "budget": 4}, "need 5"),
        ({"scorer": "snapkv", "budget": 40}, 'use when="prompt"'),
        ({"scorer": "expected", "budget": 40}, 'use when="prompt"'),
        ({"scorer": "snapkv", "when": "prompt", "budget": 31}, "31 keys, fewer than the 32 queries"),
        ({"when": "always"}, "when is 'always'; it must be one of decode, prompt"),
        ({"promotion": "no"}, "compete, always"),
        ({"positions": "absolute"}, "original, rolling"),
        ({"allocation": "cone"}, "uniform, pyramid"),
        ({"pool": 4}, "odd"),
        ({"prefill": "blockwise", "when": "prompt"}, "evicts after every block"),
    ],
)
def test_a_bad_budget_is_refused_with_the_two_facts_that_disagree(fields, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        Keep(**fields)


def test_a_share_of_a_short_prompt_that_is_nothing_is_refused():
    with pytest.raises(ValueError, match=r"0\.1 of a prompt of 9 tokens is 0 keys"):
        Keep(budget=0.1).check_rows([50, 9], 10, layers=3)
    with pytest.raises(ValueError, match="nothing to evict"):
        Keep(budget=0.1).check_rows([50], 10, layers=0)
