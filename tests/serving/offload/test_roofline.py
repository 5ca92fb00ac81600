"""The roofline against the figures that the paper's plotting constants give."""

import pytest

from mixattn.spec import ModelConfig
from serving.offload import roofline
from serving.offload.roofline import Rates
from serving.offload.shapes import MixtureShape, distinct_experts, named_model

# The constants of the paper's figures 4 and 5: an L4, whose peak is the sparse one.
L4 = Rates(near_flops=242e12, far_flops=1.3e12, near_Bps=300e9, far_Bps=100e9, link_Bps=16e9)
MIXTRAL = MixtureShape(named_model("mixtral-8x7b"))


def sliding(window: int) -> MixtureShape:
    return MixtureShape(
        ModelConfig(
            *(4, 64, 4, 2, 16, 128, 100),
            kv_wiring="0_0_2s_2s",
            window=window,
            n_experts=4,
            experts_per_token=2,
        )
    )


def test_expert_intensity_is_the_published_one():
    for tokens, expected in {32: 8.00, 128: 31.95, 1024: 252.6, 16384: 3373}.items():
        assert roofline.ffn_intensity(MIXTRAL, tokens) == pytest.approx(expected, rel=1e-3)


def test_turning_points_are_the_published_ones():
    near = roofline.ffn_intensity(MIXTRAL, 128)
    assert roofline.turning_point_1(L4) == 81.25
    assert roofline.local(L4.near_flops, L4.near_Bps, near) == pytest.approx(9.584e12, rel=1e-3)
    assert roofline.turning_point_2(L4, near) == pytest.approx(599, rel=1e-3)
    assert roofline.tokens_to_reach(MIXTRAL, 81.25) == 327
    assert roofline.tokens_to_reach(MIXTRAL, roofline.turning_point_2(L4, near)) == 2474


def test_attention_intensity_is_far_below_the_first_turning_point():
    assert roofline.attention_intensity(MIXTRAL, 512) == pytest.approx(2.0, abs=0.01)
    assert roofline.attention_intensity(MIXTRAL, 512, bytes_per_element=0.5) == pytest.approx(8.0, abs=0.04)
    assert roofline.attention_intensity(MIXTRAL, 512, as_published=False) == pytest.approx(3.97, abs=0.01)


def test_fetched_data_never_compute_faster_than_local():
    for near in (0.1, 8, 250, 4000):
        for far in (0.1, 8, 250, 4000):
            local = roofline.local(L4.near_flops, L4.near_Bps, near)
            assert roofline.fetched(L4, near, far) <= local


def test_p1_lies_below_p2_exactly_where_the_device_beats_the_host_processor():
    for micro_batch, ordered in ((4, False), (128, True)):
        near = roofline.ffn_intensity(MIXTRAL, micro_batch)
        assert (roofline.turning_point_1(L4) <= roofline.turning_point_2(L4, near)) is ordered
        assert (roofline.local(L4.near_flops, L4.near_Bps, near) >= L4.far_flops) is ordered


def test_a_few_rows_stay_on_the_host_and_many_move():
    near = roofline.ffn_intensity(MIXTRAL, 128)
    assert roofline.stays_far(L4, near, roofline.ffn_intensity(MIXTRAL, 8))
    assert not roofline.stays_far(L4, near, roofline.ffn_intensity(MIXTRAL, 2000))


def test_at_the_balance_point_link_and_device_memory_limit_alike():
    near = roofline.ffn_intensity(MIXTRAL, 128)
    balance = roofline.balance_point(L4, near)
    assert L4.link_Bps * balance == pytest.approx(L4.near_Bps * near)


def test_balance_in_tokens_does_not_depend_on_the_sizes_of_the_model():
    """E b P / (2 k BW): float32, 200 GFLOP/s and 1.5 GB/s give N* of about 1,067 for 8 experts of which 2."""
    wide, narrow = (
        sliding(8),
        MixtureShape(ModelConfig(*(2, 32, 2, 1, 16, 64, 50), n_experts=4, experts_per_token=2)),
    )
    assert roofline.balance_tokens(2e11, 1.5e9, wide) == roofline.balance_tokens(2e11, 1.5e9, narrow)


def test_windows_shorten_what_is_read_and_sharing_only_what_is_stored():
    shape = sliding(10)
    assert shape.mean_seen_tok(100) == (100 + 100 + 10 + 10) / 4
    assert shape.stored_tok_layers(100) == 100 + 10  # owners are layers 0 and 2
    assert MixtureShape(shape.config, kv_budget_tok=20).mean_seen_tok(100) == (20 + 20 + 10 + 10) / 4


def test_the_readers_of_shared_kv_have_no_kv_projections():
    config = sliding(10).config
    D, q, kv, layers, readers = 64, 64, 32, 4, 2
    expected = 4 * (layers * (2 * D * q + 2 * D * kv) - readers * 2 * D * kv)
    assert MixtureShape(config).resident_bytes == expected


def test_few_tokens_choose_few_experts():
    config = named_model("mixtral-8x7b")
    assert distinct_experts(config, 1) == 2
    assert 7.99 < distinct_experts(config, 32) < 8


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="0 experts in 0 of 6 layers"):
        MixtureShape(ModelConfig())
