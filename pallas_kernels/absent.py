"""Compiling for a chip that is not here: real errors, real memory figures, no device.

    compiled = compile_for("v5e", fn, *shapes)      # TPU: needs the aot-tpu extra; GPU: aot-cuda
    lowered = lower_for("v5e", fn, *shapes)         # needs nothing

A kernel that does not fit VMEM or shared memory, or uses an operation its chip lacks, fails here as it would
there. Speed and races are not seen.
"""

import contextlib
import importlib.util
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh


class Chip(NamedTuple):
    """A chip by its names: what JAX calls the kind, its platform, and how its topology is asked for."""

    kind: str
    cores: int
    family: str
    platform: str
    topology: str
    wheel: str


CHIPS = {
    "v5e": Chip("TPU v5 lite", 1, "tpu", "tpu", "v5e:2x2", "libtpu"),
    "v6e": Chip("TPU v6 lite", 1, "tpu", "tpu", "v6e:2x2", "libtpu"),
    "h100": Chip("NVIDIA H100 80GB HBM3", 132, "gpu", "cuda", "1x1x1", "jax_plugins.xla_cuda13"),
}
# What the compiler wants to know of an H100 SXM (public data sheet and CUDA's occupancy tables).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
runtime_version { major: 13 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def missing(chip: str) -> str | None:
    """Why nothing can be compiled for `chip` here, or None."""
    wheel = CHIPS[chip].wheel
    top = wheel.partition(".")[0]
    if importlib.util.find_spec(top) is None or importlib.util.find_spec(wheel) is None:
        return f"{wheel} is not installed (make aot installs it)"
    return None


@contextlib.contextmanager
def pretend(chip: str):
    """Tracing and lowering inside believe that `chip` is there; ops choose its bodies."""
    device = AbstractDevice(
        device_kind=CHIPS[chip].kind, num_cores=CHIPS[chip].cores, platform=CHIPS[chip].family
    )
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def lower_for(chip: str, fn, *shapes, **jit_options):
    """`fn` lowered for one device of `chip`; shapes are pytrees of `jax.ShapeDtypeStruct`."""
    with pretend(chip):
        traced = jax.jit(fn, **jit_options).trace(*shapes)
        return traced.lower(lowering_platforms=(CHIPS[chip].platform,))


def compile_for(chip: str, fn, *shapes, **jit_options):
    """`fn` compiled for one device of `chip`; `jit_options` are those of `jax.jit`.

    Raises:
      ModuleNotFoundError: the compiler is not installed; the message names the extra.
      jax.errors.JaxRuntimeError: it does not fit.
    """
    if why := missing(chip):
        raise ModuleNotFoundError(why)
    options = {"target_config": H100} if CHIPS[chip].family == "gpu" else {}
    name, extra = ("", {"topology": CHIPS[chip].topology}) if options else (CHIPS[chip].topology, {})
    topology = topologies.get_topology_desc(name, platform=CHIPS[chip].platform, **options, **extra)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("x",))
    there = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), shapes)
    lowered = lower_for(chip, fn, *shapes, **jit_options)
    with _uncached():
        return lowered.compile()


@contextlib.contextmanager
def _uncached():
    """No persistent cache inside: what is compiled for an absent chip can be stored there, but not loaded."""
    was = jax.config.jax_enable_compilation_cache
    try:
        _switch_cache(False)
        yield
    finally:
        _switch_cache(was)


def _switch_cache(on: bool):
    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # a process asks only once whether there is a cache
