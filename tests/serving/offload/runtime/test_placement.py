"""Pages by way of pinned memory: the right memory, the same numbers, buffers that are filled in place."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixattn.spec import ModelConfig
from pallas_kernels import aot
from serving.offload.runtime import placement, programs, sources
from serving.offload.runtime.buffers import Slots
from serving.offload.runtime.placement import (
    Devices,
    DeviceSlots,
    PinnedPages,
    PinnedReader,
    pinned,
    put_page,
)
from tests.serving.offload.runtime import tiny

DEVICE = jax.devices()[0]
VIEWS = [np.arange(64, dtype=np.float32).reshape(8, 8), np.ones((8, 8), np.float32)]
ROOT = Path(__file__).resolve().parents[4]


def address(array):
    return array.addressable_data(0).unsafe_buffer_pointer()


def test_pinned_pages_are_in_pinned_memory_and_do_not_mix_with_device_arrays():
    page = pinned(VIEWS, DEVICE)[0]
    assert page.sharding.memory_kind == "pinned_host"
    with pytest.raises(ValueError, match="memory"):
        jax.jit(jnp.dot)(page, jnp.ones((8, 8)))


def test_a_pinned_page_outlives_the_buffer_that_it_was_read_into():
    buffer = VIEWS[0].copy()
    page = pinned([buffer], DEVICE)[0]
    buffer.fill(np.nan)
    np.testing.assert_array_equal(page, VIEWS[0])


def test_a_page_is_put_into_the_memory_of_its_slot_and_what_was_there_is_gone():
    # Not from numpy: a device of this machine may read an array of numpy where it lies, and then keeps it.
    slot = tuple(jnp.zeros((8, 8), device=DEVICE) for _ in range(2))
    before = [address(array) for array in slot]
    filled = put_page(slot, tuple(jax.device_put(view, DEVICE) for view in VIEWS))
    assert [address(array) for array in filled] == before
    assert all(array.is_deleted() for array in slot)
    for array, view in zip(filled, VIEWS):
        np.testing.assert_array_equal(array, view)


@pytest.mark.parametrize("held", [False, True])
def test_slots_on_a_device_hold_what_slots_in_place_do(engines, held):
    checkpoint = engines.checkpoint("plain")
    reader = PinnedReader(tiny.source_of(checkpoint), checkpoint.slot_bytes, DEVICE)
    source = PinnedPages(reader, checkpoint.pages.values()) if held else reader
    on_device = DeviceSlots(2, checkpoint, source, DEVICE)
    in_place = Slots(2, checkpoint, tiny.source_of(checkpoint))
    first = on_device.read(0, 0, 0)
    places = {address(array) for array in first}
    for at in [(1, 3), (2, 1), (0, 0)]:
        for a, b in zip(on_device.read(0, *at), in_place.read(0, *at), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding.memory_kind == "device"
            assert address(a) in places
    assert all(array.is_deleted() for array in first)
    assert on_device.moved_bytes == 4 * checkpoint.expert_bytes == in_place.moved_bytes // 3 * 4
    assert on_device.nbytes == 2 * checkpoint.expert_bytes


def test_without_an_accelerator_experts_are_used_in_place():
    assert placement.accelerator() is None


def test_a_modelled_link_is_refused_where_there_is_a_real_one(engines):
    checkpoint = engines.checkpoint("plain")
    with pytest.raises(ValueError, match=r"is modelled, but .* has its own"):
        sources.open_source(checkpoint, throttle_Bps=1e6, devices=Devices(DEVICE, DEVICE))


TWO_DEVICES = """
import dataclasses, sys
from pathlib import Path
import jax
from serving.offload.machine_plan import MachineRates, MachineWorkload, GIB
from serving.offload.runtime import build, sources
from serving.offload.runtime.placement import Devices, DeviceSlots
from tests.serving.offload.runtime import tiny

compute, host = jax.devices()
name, folder = sys.argv[1], Path(sys.argv[2])
engines = tiny.Engines(folder)
checkpoint = engines.checkpoint(name)
want = engines.resident(name)
for mode, held, schedule in (("stream", False, "s1"), ("stream", True, "s4"), ("cache", True, "s1")):
    source = sources.open_source(checkpoint, in_host_memory=held, devices=Devices(compute, host))
    planner = build.planner(checkpoint, MachineRates(1e9, 1e-3, 1e-5), MachineWorkload(10, 64), GIB)
    plan = dataclasses.replace(planner.best(mode, schedule), rows=tiny.ROWS, parts=5, slots=8, resident=0)
    made = build.build(checkpoint, source, plan, tiny.CONFIG)
    assert isinstance(made.slots, DeviceSlots)
    assert tiny.answers(made.engine, made.runner) == want, mode
    pools = jax.tree.leaves(made.engine.state.cache.pools)
    assert {device for pool in pools for device in pool.devices()} == {host}
    if schedule == "s1" and mode == "stream":
        moved = {span.task.kind for span in made.runner.measured.spans}
        assert moved >= {"offload", "load", "weights"}, moved
print("equal")
"""


def test_a_device_and_its_host_give_the_resident_models_numbers(folder):
    """Two devices of a CPU stand for them: an array on the wrong one, or in the wrong memory, is an error."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, "plain", str(folder)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


WIDE = ModelConfig(2, 1024, 8, 2, 128, 1792, 1024, n_experts=8, experts_per_token=2, dtype="bfloat16")


def wide_programs():
    """Name -> function and shapes of programs that a pass runs on the device, at a size that is served."""
    D, F, E, k, rows = WIDE.d_model, WIDE.d_ff, WIDE.n_experts, WIDE.experts_per_token, 64
    b = programs.block_rows(rows * k, E)
    y = jax.ShapeDtypeStruct((rows * k + b, D), WIDE.dtype)
    one = jax.ShapeDtypeStruct((), jnp.int32)
    matrices = tuple(jax.ShapeDtypeStruct(shape, WIDE.dtype) for shape in ((F, D), (F, D), (D, F)))

    def expert(y, x, first, size, matrices):
        return programs.expert(WIDE, True, b, y, x, first, size, matrices)

    return {"put": (put_page, (matrices, matrices)), "expert": (expert, (y, y, one, one, matrices))}


@pytest.mark.parametrize("name", wide_programs())
def test_programs_of_a_pass_lower_for_a_gpu(name):
    function, shapes = wide_programs()[name]
    assert "func.func public @main" in aot.lower_for("h100", function, *shapes, donate_argnums=0).as_text()


@pytest.mark.aot
@pytest.mark.parametrize("name", wide_programs())
def test_programs_of_a_pass_fill_their_buffers_in_place_on_a_gpu(name):
    if why := aot.missing("h100"):
        pytest.skip(why)
    function, shapes = wide_programs()[name]
    memory = aot.compile_for("h100", function, *shapes, donate_argnums=0).memory_analysis()
    buffer = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[0]))
    assert memory.alias_size_in_bytes == buffer
    assert memory.temp_size_in_bytes < 4 << 20
