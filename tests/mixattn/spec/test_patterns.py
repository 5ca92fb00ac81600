"""The paper's fifteen wirings, entry for entry, and what the same rules give at other depths."""

import pytest

from mixattn.spec import PATTERNS, parse_wiring

# 24 layers. Groups of sliding layers as ranges, full layers as (layer, layer it reads).
EXACT = {
    "ma": "0_1s_1s_3s_3s_3s_0_7s_7s_9s_9s_9s_0_13s_13s_15s_15s_15s_0_19s_19s_21s_21s_0",
    "ma_endslide": "0_1s_1s_3s_3s_3s_0_7s_7s_9s_9s_9s_0_13s_13s_15s_15s_15s_0_19s_19s_21s_21s_21s",
    "ma_offset": "0s_0s_2s_2s_2s_5_6s_6s_8s_8s_8s_5_12s_12s_14s_14s_14s_5_18s_18s_20s_20s_20s_5",
    "ma_pairs": "0_1s_1s_3s_3s_3s_0_7s_7s_9s_9s_9s_12_13s_13s_15s_15s_15s_12_19s_19s_21s_21s_21s",
    "ma_offset_slideshare": "0s_0s_0s_0s_0s_5_6s_6s_6s_6s_6s_5_12s_12s_12s_12s_12s_5_18s_18s_18s_18s_18s_5",
    "ma_pairs_slideshare": "0_1s_1s_1s_1s_1s_0_7s_7s_7s_7s_7s_12_13s_13s_13s_13s_13s_12_19s_19s_19s_19s_19s",
}
GROUPS = {  # full layers {layer: owner}, first layers of the sliding groups
    "ma_successive_1": ({0: 0, 1: 0, 12: 12, 13: 12}, (2, 4, 7, 9, 14, 16, 19, 21)),
    "ma_successive_2": ({5: 5, 6: 5, 12: 12, 13: 12}, (0, 2, 7, 9, 14, 16, 19, 21)),
    "ma_successive_3": ({10: 10, 11: 10, 17: 17, 18: 17}, (0, 2, 5, 7, 12, 14, 19, 21)),
    "ma_successive_4": ({10: 10, 11: 10, 22: 22, 23: 22}, (0, 2, 5, 7, 12, 14, 17, 19)),
    "ma_noshare_1": ({3: 3}, (0, 2, 4, 7, 9, 12, 14, 17, 19, 22)),
    "ma_noshare_2": ({10: 10}, (0, 2, 5, 7, 11, 13, 16, 18, 21, 23)),
    "ma_noshare_3": ({20: 20}, (0, 2, 5, 7, 10, 12, 15, 17, 21, 22)),
}
OWNERS = {  # full, sliding
    "standard": (24, 0),
    "swa": (0, 24),
    "ma": (1, 8),
    "ma_endslide": (1, 8),
    "ma_offset": (1, 8),
    "ma_pairs": (2, 8),
    "ma_offset_slideshare": (1, 4),
    "ma_pairs_slideshare": (2, 4),
    "ma_successive_1": (2, 8),
    "ma_successive_2": (2, 8),
    "ma_successive_3": (2, 8),
    "ma_successive_4": (2, 8),
    "ma_noshare_1": (1, 10),
    "ma_noshare_2": (1, 10),
    "ma_noshare_3": (1, 10),
    "cla": (12, 0),
    "yoco": (1, 12),
    "local_global": (4, 20),
}


@pytest.mark.parametrize("name", EXACT)
def test_24_layers_give_the_papers_string(name):
    assert PATTERNS[name](24) == EXACT[name]


@pytest.mark.parametrize("name", GROUPS)
def test_24_layers_give_the_papers_groups(name):
    full, starts = GROUPS[name]
    sliding = {i: max(s for s in starts if s <= i) for i in range(24) if i not in full}
    want = "_".join(str(full[i]) if i in full else f"{sliding[i]}s" for i in range(24))
    assert PATTERNS[name](24) == want


def test_every_pattern_has_its_row_of_owner_counts():
    assert set(OWNERS) == set(PATTERNS)


@pytest.mark.parametrize("name", PATTERNS)
def test_owner_counts_are_the_papers(name):
    owners = [layer for layer in parse_wiring(PATTERNS[name](24), 1024) if layer.owns]
    full = sum(layer.window is None for layer in owners)
    assert (full, len(owners) - full) == OWNERS[name]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("n_layers", [*range(6, 20), 22, 26, 32, 48])
def test_every_depth_gives_a_legal_wiring(name, n_layers):
    assert len(parse_wiring(PATTERNS[name](n_layers), 16)) == n_layers


@pytest.mark.parametrize(
    ("name", "n_layers", "want"),
    [
        ("ma", 12, "0_1s_1s_0_4s_4s_0_7s_7s_0_10s_0"),
        ("ma_endslide", 12, "0_1s_1s_0_4s_4s_0_7s_7s_0_10s_10s"),
        ("ma_offset", 12, "0s_0s_2_3s_3s_2_6s_6s_2_9s_9s_2"),
        ("ma_pairs", 12, "0_1s_1s_0_4s_4s_6_7s_7s_6_10s_10s"),
        ("ma_offset", 6, "0s_0s_2_3s_3s_2"),
        ("cla", 5, "0_0_2_2_4"),
        ("yoco", 6, "0s_1s_2s_3_3_3"),
        ("local_global", 7, "0s_1s_2s_3s_4s_5_6s"),
    ],
)
def test_other_depths_follow_the_same_rule(name, n_layers, want):
    assert PATTERNS[name](n_layers) == want


def test_a_pattern_refuses_a_stack_too_shallow_for_it():
    with pytest.raises(ValueError, match="ma_successive_1 needs at least 6 layers, not 5"):
        PATTERNS["ma_successive_1"](5)
