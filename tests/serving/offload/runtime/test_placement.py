"""Pages by way of pinned memory: the right memory, the same numbers, and copies of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.offload.runtime.placement import OnDevice, pinned

DEVICE = jax.devices()[0]
VIEWS = [np.arange(64, dtype=np.float32).reshape(8, 8), np.ones((8, 8), np.float32)]


def test_pinned_pages_are_in_pinned_memory_and_do_not_mix_with_device_arrays():
    page = pinned(VIEWS, DEVICE)[0]
    assert page.sharding.memory_kind == "pinned_host"
    with pytest.raises(ValueError, match="memory"):
        jax.jit(jnp.dot)(page, jnp.ones((8, 8)))


def test_placed_pages_have_the_same_numbers_and_outlive_their_buffer():
    buffer = VIEWS[0].copy()
    placed, other = OnDevice(DEVICE)([buffer, VIEWS[1]])
    buffer.fill(np.nan)
    np.testing.assert_array_equal(placed, VIEWS[0])
    assert placed.sharding.memory_kind == "device"
    np.testing.assert_allclose(jax.jit(jnp.dot)(placed, other), VIEWS[0] @ VIEWS[1])
