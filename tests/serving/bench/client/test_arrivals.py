"""Open loops: the load is the one asked for, the pattern has the asked-for burstiness."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.client.arrivals import gamma_times, ramp_times


@given(st.integers(1, 400), st.floats(0.1, 1000), st.floats(0.1, 10), st.integers(0, 9))
def test_the_last_request_comes_after_n_over_rate_and_none_before_another(n, rate, burstiness, seed):
    times = gamma_times(n, rate, burstiness, np.random.default_rng(seed))
    assert len(times) == n
    assert times[-1] == pytest.approx(n / rate)
    assert all(0 <= a <= b for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness):
    gaps = np.diff(gamma_times(40_000, 5.0, burstiness, np.random.default_rng(1)))
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_an_infinite_rate_sends_all_at_once_and_a_rate_of_zero_is_refused():
    assert gamma_times(3, math.inf, 1.0, np.random.default_rng(0)) == [0.0] * 3
    with pytest.raises(ValueError, match="must be above 0"):
        gamma_times(3, 0.0, 1.0, np.random.default_rng(0))


@pytest.mark.parametrize(("kind", "middle"), [("linear", 55.0), ("exponential", 31.6)])
def test_a_ramp_goes_from_one_rate_to_the_other(kind, middle):
    times = np.array(ramp_times(30_000, kind, 10.0, 100.0, 50.0, np.random.default_rng(0)))
    rate = 1 / np.diff(times)
    for at, expected in ((150, 10.0), (15_000, middle), (29_850, 100.0)):
        assert np.median(rate[at - 100 : at + 100]) == pytest.approx(expected, rel=0.1)
    with pytest.raises(ValueError, match="linear or exponential"):
        ramp_times(3, "sudden", 1.0, 2.0, 1.0, np.random.default_rng(0))
