"""Kernels lowered and compiled for chips that are not here."""

import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import aot, aot_programs, paged
from pallas_kernels.aot_programs import PROGRAMS, shape
from pallas_kernels.attention import explain

CALL = {"tpu": "tpu_custom_call", "gpu": "mosaic_gpu"}


@pytest.mark.parametrize(
    ("chip", "name"), [(chip, name) for chip in ("v5e", "h100") for name in PROGRAMS[chip]]
)
def test_every_program_lowers_to_a_kernel(chip, name):
    fn, arrays = PROGRAMS[chip][name]()
    assert CALL[aot.CHIPS[chip].family] in aot.lower_for(chip, fn, *arrays).as_text()


def needs(chip):
    if why := aot.missing(chip):
        pytest.skip(why)


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_compiling_twice_needs_no_device_to_load_the_first(chip, tmp_path):
    """A persistent cache would keep the program, and fail to load it where the chip is absent."""
    needs(chip)
    was = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        for _ in range(2):
            aot.compile_for(chip, lambda x: jnp.sin(x) * 2, shape(1024))
        assert jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_compilation_cache_dir", was)


@pytest.mark.aot
@pytest.mark.parametrize("page", [16, 64])
def test_a_donated_write_on_tpu_happens_in_place(page):
    needs("v5e")
    fn, arrays = aot_programs.write("tpu", page=page)
    memory = aot.compile_for("v5e", fn, *arrays, donate_argnums=0).memory_analysis()
    assert memory.alias_size_in_bytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays[0]))
    assert memory.temp_size_in_bytes < 1 << 20


def test_inside_target_ops_choose_the_backends_of_the_absent_chip():
    arrays = shape(1, 64, 8, 128), shape(1, 64, 2, 128), shape(1, 64, 2, 128)
    assert explain(*arrays).backend == "xla"
    for chip, backend in (("v5e", "tpu"), ("h100", "gpu")):
        with aot.target(chip):
            assert explain(*arrays).backend == backend
            assert paged.init(4, 16, 2, 128, "bfloat16").layout == "rows"
    assert explain(*arrays).backend == "xla"


@pytest.mark.aot
def test_a_kernel_that_does_not_fit_raises(monkeypatch):
    """The compiler's verdict is real: tiles of 8k rows cannot lie in VMEM."""
    needs("v5e")
    monkeypatch.setattr("pallas_kernels.attention.tpu_blocks.ROWS", 1 << 13)
    fn, arrays = PROGRAMS["v5e"]["prefill"]()
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.compile("vmem", re.IGNORECASE)):
        aot.compile_for("v5e", fn, *arrays)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="libtpu is not installed"):
        aot.compile_for("v5e", jnp.sin, shape(8))
