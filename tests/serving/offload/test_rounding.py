"""Experts in 8 bits: the house's own arithmetic, in a quarter of the bytes."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import int8
from serving.offload.rounding import rounded
from serving.offload.runtime.sources import open_source
from serving.offload.store import aligned_buffer
from tests.serving.offload.runtime import tiny


@pytest.mark.parametrize("shape", [(64, 32), (200, 48), (1, 7)])
def test_codes_and_scales_are_those_of_the_kernels(shape):
    w_FD = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w_FD[0] = 0
    codes_FD, scale_F = rounded(w_FD)
    want = int8.quantize(jnp.asarray(w_FD))
    np.testing.assert_array_equal(codes_FD, want.codes)
    np.testing.assert_array_equal(scale_F, want.scale)
    assert np.abs(codes_FD * scale_F[:, None] - w_FD).max() <= scale_F.max() / 2 * 1.001


@pytest.mark.parametrize("architecture", ["mixattn", "mixtral"])
@pytest.mark.parametrize("held", [False, True])
def test_pages_are_the_checkpoints_rounded_and_a_quarter_moves_from_host_memory(tmp_path, architecture, held):
    path = tiny.saved("plain", tmp_path, **({"architecture": "mixtral"} if architecture == "mixtral" else {}))
    stored, small = tiny.locate(path), tiny.locate(path, "int8")
    plain, source = open_source(stored), open_source(small, in_host_memory=held)
    page = small.pages[1, 2]
    found = source.pages.read_page(page, aligned_buffer(small.slot_bytes))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in small.arrays]
    for w, codes, scale in zip(
        plain.pages.read_page(page, aligned_buffer(stored.page_bytes)), found[::2], found[1::2], strict=True
    ):
        want = rounded(w if stored.transposed else w.T)
        np.testing.assert_array_equal(codes, want[0])
        np.testing.assert_array_equal(scale, want[1])
    moved = source.moved_bytes(page)
    assert moved == sum(x.nbytes for x in found) if held else page.file_bytes
    assert small.slot_bytes < 0.35 * stored.page_bytes  # narrow matrices: scales and lines of 64 bytes count
    plain.close()
    source.close()
