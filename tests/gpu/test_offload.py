"""What only a GPU can show of offloading: each test prints one line. Skipped without a device."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

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


def test_copies_overlap_with_programs():
    page = jax.device_put(np.ones(PAGE // 4, np.float32), sharding("pinned_host"))
    side = jax.device_put(jnp.ones((8192, 8192), jnp.bfloat16), sharding("device"))
    multiply = jax.jit(lambda a: a @ a @ a @ a)
    copy_s = seconds(lambda: jax.device_put(page, sharding("device")))
    compute_s = seconds(lambda: multiply(side))
    both_s = seconds(lambda: (jax.device_put(page, sharding("device")), multiply(side)))
    print(f"copy {copy_s * 1e3:.1f} ms, compute {compute_s * 1e3:.1f} ms, both {both_s * 1e3:.1f} ms")
    assert both_s < 0.9 * (copy_s + compute_s)


def test_pinned_memory_is_faster_than_pageable():
    host = np.ones(PAGE // 4, np.float32)
    page = jax.device_put(host, sharding("pinned_host"))
    pinned_s = seconds(lambda: jax.device_put(page, sharding("device")))
    pageable_s = seconds(lambda: jax.device_put(host, sharding("device")))
    print(f"pinned {PAGE / pinned_s / 2**30:.1f} GiB/s, pageable {PAGE / pageable_s / 2**30:.1f} GiB/s")
    assert pinned_s < pageable_s


def test_the_pinned_pool_holds_a_layer_of_mixtral():
    pages = [jax.device_put(np.ones(PAGE // 4, np.float32), sharding("pinned_host")) for _ in range(12)]
    print(f"{len(pages) * PAGE / 2**30:.1f} GiB pinned at once")
    assert all(page.sharding.memory_kind == "pinned_host" for page in pages)
