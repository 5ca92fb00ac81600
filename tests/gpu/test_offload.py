"""What only a GPU can show of offloading: each test prints one line. Skipped without a device."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from serving.offload.runtime import placement

GPUS = [device for device in jax.devices() if device.platform == "gpu"]
pytestmark = pytest.mark.skipif(not GPUS, reason=f"no GPU here, only {jax.devices()[0].platform}")
PAGE = 256 << 20  # bytes


def sharding(kind):
    return SingleDeviceSharding(GPUS[0], memory_kind=kind)


def seconds(work, rounds=5):
    work()
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - before)
    return sorted(times)[rounds // 2]


class Slot:
    """A slot that pages are put into, one after the other."""

    def __init__(self):
        self.arrays = (jax.device_put(np.zeros(PAGE // 4, np.float32), sharding("device")),)

    def fill(self, page):
        self.arrays = placement.put_page(self.arrays, jax.device_put((page,), sharding("device")))
        return self.arrays


def test_the_accelerator_is_found():
    found = placement.accelerator()
    print(f"pages go to {found.compute}, attention runs on {found.host}")
    assert found == (GPUS[0], jax.local_devices(backend="cpu")[0])


def test_copies_overlap_with_programs():
    page, slot = placement.pinned([np.ones(PAGE // 4, np.float32)], GPUS[0])[0], Slot()
    side = jax.device_put(jnp.ones((8192, 8192), jnp.bfloat16), sharding("device"))
    multiply = jax.jit(lambda a: a @ a @ a @ a)
    copy_s = seconds(lambda: slot.fill(page))
    compute_s = seconds(lambda: multiply(side))
    both_s = seconds(lambda: (slot.fill(page), multiply(side)))
    print(f"copy {copy_s * 1e3:.1f} ms, compute {compute_s * 1e3:.1f} ms, both {both_s * 1e3:.1f} ms")
    assert both_s < copy_s + compute_s - 0.5 * min(copy_s, compute_s)


def test_pinned_memory_is_faster_than_pageable():
    host = np.ones(PAGE // 4, np.float32)
    page = placement.pinned([host], GPUS[0])[0]
    pinned_s = seconds(lambda: jax.device_put(page, sharding("device")))
    pageable_s = seconds(lambda: jax.device_put(host, sharding("device")))
    print(f"pinned {PAGE / pinned_s / 2**30:.1f} GiB/s, pageable {PAGE / pageable_s / 2**30:.1f} GiB/s")
    assert pinned_s < pageable_s


FILL = """
import jax, numpy as np
from serving.offload.runtime import placement
device, pages = jax.devices()[0], []
try:
    while len(pages) < 64:
        pages.append(jax.block_until_ready(placement.pinned([np.zeros(16 << 20, np.float32)], device)))
except Exception as why:
    print(len(pages), type(why).__name__, str(why).splitlines()[0])
else:
    print(len(pages), "none", "")
"""


def test_the_pinned_pool_has_a_limit_that_is_an_error_and_can_be_raised():
    fitted = {}
    for limit in (1, 2):
        settings = {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": str(limit), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = subprocess.run(
            [sys.executable, "-c", FILL],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        count, error, message = (
            done.stdout.strip().split(" ", 2) if done.returncode == 0 else (0, "", done.stderr)
        )
        print(f"limit {limit} GB: {int(count) / 16:.2f} GiB of pages pinned, then {error} {message[:80]}")
        fitted[limit] = int(count) / 16
        assert error != "none"
    assert 0.5 <= fitted[1] <= 1 < fitted[2] <= 2
