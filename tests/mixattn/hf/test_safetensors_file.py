"""Files that `save_aligned` writes are what the library reads, and are loaded without a copy."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mixattn import hf
from mixattn.hf.checkpoint_dir import Tensors
from mixattn.hf.safetensors_file import ALIGNMENT, save_aligned
from mixattn.model import Transformer
from tests.mixattn.tiny import TINY, logits, model, tokens


def _tensors():
    rng = np.random.default_rng(0)
    return {
        "odd": rng.normal(size=(3,)).astype(np.float32),
        "matrix": rng.normal(size=(48, 64)).astype(np.float32),
        "half": rng.normal(size=(32, 16)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(2.5).reshape(()),
        'quote"d näme': np.ones((16,), np.float16),
    }


def test_the_library_reads_what_was_written(tmp_path):
    tensors = _tensors()
    save_aligned(tensors, tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)


def test_all_tensors_of_whole_lines_begin_at_a_multiple_of_the_alignment(tmp_path):
    path = tmp_path / "model.safetensors"
    save_aligned(_tensors(), path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, about in header.items():
        if name != "__metadata__" and (about["data_offsets"][1] - about["data_offsets"][0]) % ALIGNMENT == 0:
            assert (8 + length + about["data_offsets"][0]) % ALIGNMENT == 0, name


def test_a_type_that_weights_do_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tensor codes has type int16"):
        save_aligned({"codes": np.zeros(4, np.int16)}, tmp_path / "model.safetensors")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a device has its own memory")
def test_a_saved_tensor_is_used_where_it_is_mapped(tmp_path):
    value = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    save_aligned({"w": value}, tmp_path / "model.safetensors")
    mapped = Tensors(tmp_path).read("w")
    assert jax.device_put(mapped).unsafe_buffer_pointer() == mapped.ctypes.data


def test_donating_mapped_weights_changes_neither_the_file_nor_other_users(tmp_path):
    value = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    path = tmp_path / "model.safetensors"
    save_aligned({"w": value}, path)
    before = path.read_bytes()
    x, other = (jax.device_put(Tensors(tmp_path).read("w")) for _ in range(2))
    y = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    np.testing.assert_array_equal(y, value + 1)
    np.testing.assert_array_equal(other, value)
    assert path.read_bytes() == before


def test_a_model_outlives_the_file_it_was_loaded_from(tmp_path):
    hf.save(model(TINY), tmp_path)
    loaded, _ = hf.load(tmp_path)
    want = logits(TINY, tokens())
    hf.save(Transformer(TINY, rngs=nnx.Rngs(1)), tmp_path)
    np.testing.assert_array_equal(logits(TINY, tokens(), nnx.split(loaded)[1]), want)
