"""Kernels lowered and compiled for chips that are not here."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import absent, paged
from pallas_kernels.attention import attention, explain
from pallas_kernels.heavy_hitter import column_sums

TPU_CHIPS = ("v5e", "v6e")


def shape(*dimensions, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(dimensions, dtype)


def prefill(backend, *, T=8192, N=8, K=2, H=128, window=None, dtype="bfloat16"):
    q, k = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype)
    return functools.partial(attention, window=window, return_lse=True, backend=backend), (q, k, k)


def sums(backend, *, T=8192, N=8, K=2, H=128, window=None, dtype="bfloat16"):
    arrays = shape(1, T, N, H, dtype=dtype), shape(1, T, K, H, dtype=dtype), shape(1, T, N, dtype="float32")
    return functools.partial(column_sums, window=window, backend=backend), arrays


def decode(backend, *, B=32, C=1, N=8, K=2, H=128, page=16, context=8192, window=None, dtype="bfloat16"):
    pool = jax.eval_shape(lambda: paged.init(1 + B * 8, page, K, H, dtype, layout="rows"))
    index = shape(B, dtype="int32")
    arrays = shape(B, C, N, H, dtype=dtype), pool, shape(B, context // page, dtype="int32"), index, index
    return functools.partial(paged.attend, window=window, backend=backend), arrays


PROGRAMS = {
    "prefill": functools.partial(prefill),
    "prefill_window": functools.partial(prefill, window=1024),
    "prefill_float32": functools.partial(prefill, window=1024, dtype="float32"),
    "sums": functools.partial(sums),
    "decode": functools.partial(decode),
    "decode_window": functools.partial(decode, window=1024),
    "decode_head_64": functools.partial(decode, H=64),
    "decode_float32": functools.partial(decode, dtype="float32", page=64),
    "chunk": functools.partial(decode, C=64),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_lowers_for_tpu(name):
    fn, arrays = PROGRAMS[name]("tpu")
    assert "tpu_custom_call" in absent.lower_for("v5e", fn, *arrays).as_text()


def needs(chip):
    if why := absent.missing(chip):
        pytest.skip(why)


@pytest.mark.aot
@pytest.mark.parametrize("chip", TPU_CHIPS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_compiles_for_tpu_within_its_memory(name, chip):
    needs(chip)
    fn, arrays = PROGRAMS[name]("tpu")
    compiled = absent.compile_for(chip, fn, *arrays)
    inputs_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    assert compiled.memory_analysis().temp_size_in_bytes < inputs_bytes + (64 << 20)
    assert compiled.cost_analysis()["flops"] > 0


GPU_PROGRAMS = {
    "prefill": PROGRAMS["prefill"],
    "prefill_window": PROGRAMS["prefill_window"],
    "prefill_head_64": functools.partial(prefill, H=64, window=1000, N=6),
    "decode": PROGRAMS["decode"],
    "decode_window": PROGRAMS["decode_window"],
    "decode_head_64": PROGRAMS["decode_head_64"],
    "decode_three_heads": functools.partial(decode, N=6),
    "chunk": PROGRAMS["chunk"],
}


@pytest.mark.parametrize("name", GPU_PROGRAMS)
def test_every_program_lowers_for_hopper(name):
    fn, arrays = GPU_PROGRAMS[name]("gpu")
    assert "mosaic_gpu" in absent.lower_for("h100", fn, *arrays).as_text()


@pytest.mark.aot
@pytest.mark.parametrize("name", GPU_PROGRAMS)
def test_every_program_compiles_for_hopper_without_spills_and_with_wgmma(name, monkeypatch, capfd):
    needs("h100")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    fn, arrays = GPU_PROGRAMS[name]("gpu")
    absent.compile_for("h100", fn, *arrays)
    said = "".join(capfd.readouterr())
    assert "wgmma.mma_async" in said
    assert re.findall(r"(\d+) bytes spill", said) == ["0", "0"]


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_compiling_twice_needs_no_device_to_load_the_first(chip, tmp_path):
    """A persistent cache would keep the program, and fail to load it where the chip is absent."""
    needs(chip)
    was = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        for _ in range(2):
            absent.compile_for(chip, lambda x: jnp.sin(x) * 2, shape(1024))
        assert jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_compilation_cache_dir", was)


def test_inside_pretend_ops_choose_the_bodies_of_the_absent_chip():
    arrays = shape(1, 64, 8, 128), shape(1, 64, 2, 128), shape(1, 64, 2, 128)
    assert explain(*arrays).backend == "xla"
    for chip, backend in (("v5e", "tpu"), ("h100", "gpu")):
        with absent.pretend(chip):
            assert explain(*arrays).backend == backend
            assert paged.init(4, 16, 2, 128, "bfloat16").layout == "rows"
    assert explain(*arrays).backend == "xla"


@pytest.mark.aot
def test_a_kernel_that_does_not_fit_is_refused(monkeypatch):
    """The compiler's verdict is real: tiles of 8k rows cannot lie in VMEM."""
    needs("v5e")
    monkeypatch.setattr("pallas_kernels.attention.tpu.ROWS", 1 << 13)
    fn, arrays = PROGRAMS["prefill"]("tpu")
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.compile("vmem", re.IGNORECASE)):
        absent.compile_for("v5e", fn, *arrays)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="libtpu is not installed"):
        absent.compile_for("v5e", jnp.sin, shape(8))
