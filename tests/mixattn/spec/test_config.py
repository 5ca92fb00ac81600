"""The wiring grammar, the config's refusals and the memory formula."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.spec import PATTERNS, Layer, ModelConfig, kv_bytes, kv_bytes_by_owner, parse_wiring

PAPER = ModelConfig(n_layers=24, n_heads=12, n_kv_heads=3, head_dim=128, window=1024)


def wired(name: str) -> ModelConfig:
    return dataclasses.replace(PAPER, kv_wiring=name)


def test_an_entry_says_owner_and_kind():
    assert parse_wiring("0s_0s_2_2", 7) == (
        Layer(0, 0, 7),
        Layer(1, 0, 7),
        Layer(2, 2, None),
        Layer(3, 2, None),
    )


@pytest.mark.parametrize(
    ("wiring", "why"),
    [
        ("0_2_2", "layer 1 reads layer 2, which comes later"),
        ("0_0_1", "layer 2 reads layer 1, which itself reads 0"),
        ("0_0s", "sliding layer 1 reads the K/V of full layer 0"),
        ("0s_0", "full layer 1 reads the K/V of sliding layer 0"),
        ("", "entry 0 is ''"),
        ("0_1S", "entry 1 is '1S'"),
        ("0__1", "entry 1 is ''"),
        ("0_-1", "entry 1 is '-1'"),
        ("0_١", "entry 1 is"),
    ],
)
def test_an_illegal_wiring_is_refused_with_its_reason(wiring, why):
    with pytest.raises(ValueError, match=why):
        parse_wiring(wiring, 8)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=6))
def test_the_parser_accepts_exactly_the_legal_wirings(entries):
    """Legal: own index, or the index of an earlier owner of the same kind."""
    legal = all(
        owner == i or (owner < i and entries[owner][0] == owner and entries[owner][1] == slides)
        for i, (owner, slides) in enumerate(entries)
    )
    wiring = "_".join(f"{owner}{'s' * slides}" for owner, slides in entries)
    if legal:
        assert [layer.owner for layer in parse_wiring(wiring, 4)] == [owner for owner, _ in entries]
    else:
        with pytest.raises(ValueError, match="kv_wiring"):
            parse_wiring(wiring, 4)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": 3, "n_kv_heads": 2}, "3 query heads do not split over 2 kv heads"),
        ({"n_layers": 3, "kv_wiring": "0_1"}, "2 entries but n_layers is 3"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"head_dim": 5}, "rotates 5 entries"),
        ({"n_experts": 4, "experts_per_token": 5}, "5 of 4 experts"),
        ({"dense_layers": (6,)}, r"outside 0\.\.5"),
        ({"dtype": "float99"}, "dtype is 'float99'"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        ModelConfig(**fields)


def test_an_override_that_breaks_a_config_is_caught_when_checked_again():
    config = ModelConfig()
    config.n_kv_heads = 3
    with pytest.raises(ValueError, match="do not split"):
        config.check()


def test_configs_are_hashable_values():
    assert hash(wired("ma")) == hash(wired("ma"))
    assert wired("ma") != wired("ma_offset")


def test_owners_are_the_layers_that_store():
    assert ModelConfig(n_layers=6, kv_wiring="0s_0s_2_3s_3s_2").owners == (0, 2, 3)


# The memory table of the paper's shape at 32,000 tokens, bfloat16: bytes per token, MiB unwindowed, MiB
# windowed.
TABLE = {
    "standard": (36_864, 1125.0, 1125.0),
    "swa": (36_864, 1125.0, 36.0),
    "ma": (13_824, 421.9, 58.9),
    "ma_endslide": (13_824, 421.9, 58.9),
    "ma_offset": (13_824, 421.9, 58.9),
    "ma_pairs": (15_360, 468.8, 105.8),
    "ma_successive_1": (15_360, 468.8, 105.8),
    "ma_offset_slideshare": (7_680, 234.4, 52.9),
    "ma_pairs_slideshare": (9_216, 281.2, 99.8),
    "ma_noshare_1": (16_896, 515.6, 61.9),
}


@pytest.mark.parametrize("name", TABLE)
def test_memory_is_the_papers_formula(name):
    token_bytes, full_mib, windowed_mib = TABLE[name]
    config = wired(name)
    assert kv_bytes(config, 1, windowed=False) == token_bytes
    assert kv_bytes(config, 32_000, windowed=False) / 2**20 == pytest.approx(full_mib, abs=0.06)
    assert kv_bytes(config, 32_000) / 2**20 == pytest.approx(windowed_mib, abs=0.06)


def test_bytes_follow_owners_and_not_readers():
    own, shared = wired("0s_0s_" + "_".join(str(i) for i in range(2, 24))), wired("standard")
    assert len(kv_bytes_by_owner(own, 10)) == len(kv_bytes_by_owner(shared, 10)) - 1
    assert kv_bytes(wired("ma"), 10) == kv_bytes(wired("ma"), 10, "float32") // 2


@pytest.mark.parametrize("name", PATTERNS)
def test_within_the_window_windows_save_nothing(name):
    assert kv_bytes(wired(name), 1024) == kv_bytes(wired(name), 1024, windowed=False)
