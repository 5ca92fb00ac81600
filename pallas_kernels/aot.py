"""Compiling for a chip that is not here: real errors, real memory figures, no device.

    compiled = compile_for("v5e", fn, *shapes)      # TPU: needs the aot-tpu extra; GPU: aot-cuda
    lowered = lower_for("v5e", fn, *shapes)         # needs nothing
    memory = fit("v5e", lambda: lowered)            # how much of the chip's memory, and whether it has that

A kernel that does not fit VMEM or shared memory, or uses an operation its chip lacks, fails here as it would
there. Speed and races are not seen.
"""

import contextlib
import importlib.util
import os
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh


class Chip(NamedTuple):
    """A chip by its names: what JAX calls the kind, its platform, and how its topology is asked for.

    `memory_bytes` is what programs may use of its main memory.
    """

    kind: str
    cores: int
    family: str
    platform: str
    topology: str
    wheel: str
    memory_bytes: int


GIB = 1 << 30
# TPU memory as libtpu reports it, a quarter to three quarters of a GiB short of the data sheet.
CHIPS = {
    "v5e": Chip("TPU v5 lite", 1, "tpu", "tpu", "v5e:2x2", "libtpu", int(15.75 * GIB)),
    "v6e": Chip("TPU v6 lite", 1, "tpu", "tpu", "v6e:2x2", "libtpu", int(31.25 * GIB)),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3", 132, "gpu", "cuda", "1x1x1", "jax_plugins.xla_cuda13", 84_929_347_584
    ),
}
# libtpu looks for a TPU host around it, and for other processes that hold its chips: there are none.
QUIET = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
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
def target(chip: str):
    """Tracing and lowering inside believe that `chip` is there; ops choose its bodies."""
    device = AbstractDevice(
        device_kind=CHIPS[chip].kind, num_cores=CHIPS[chip].cores, platform=CHIPS[chip].family
    )
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def lower_for(chip: str, fn, *shapes, **jit_options):
    """`fn` lowered for one device of `chip`; shapes are pytrees of `jax.ShapeDtypeStruct`."""
    with target(chip):
        traced = jax.jit(fn, **jit_options).trace(*shapes)
        return traced.lower(lowering_platforms=(CHIPS[chip].platform,))


def compile_for(chip: str, fn, *shapes, **jit_options):
    """`fn` compiled for one device of `chip`; `jit_options` are those of `jax.jit`.

    Raises:
      ModuleNotFoundError: the compiler is not installed; the message names the extra.
      jax.errors.JaxRuntimeError: it does not fit.
    """
    return finish(lower_for(chip, fn, *on(chip, *shapes), **jit_options))


def on(chip: str, *shapes):
    """The same shapes, lying on one device of `chip`."""
    there = NamedSharding(jax.sharding.Mesh(np.array([device(chip)]), ("x",)), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), shapes)


def device(chip: str):
    """One device of the absent `chip`, for a mesh. Raises ModuleNotFoundError without its compiler."""
    if why := missing(chip):
        raise ModuleNotFoundError(why)
    about = CHIPS[chip]
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if about.family == "gpu":
        options = {"target_config": H100, "topology": about.topology}
        return topologies.get_topology_desc("", platform=about.platform, **options).devices[0]
    return topologies.get_topology_desc(about.topology, platform=about.platform).devices[0]


def finish(lowered):
    """Compiles what was lowered for an absent device."""
    with _uncached():
        return lowered.compile()


class CompiledMemory(NamedTuple):
    """A compiled program's memory on one chip, in bytes.

    Attributes:
      arguments: inputs, and outputs that do not lie in donated inputs.
      temporaries: what the program needs beside them at its fullest; None where the compiler gave up.
      total: both together, and the program's own code; where the compiler refused, what it says was needed.
      capacity: what the chip has.
      why: the compiler's words where it refused.
    """

    arguments: int | None
    temporaries: int | None
    total: int
    capacity: int
    why: str = ""

    @property
    def fits(self) -> bool:
        return not self.why and self.total <= self.capacity


def compiled_memory(chip: str, lower) -> CompiledMemory:
    """The memory of the program that `lower()` lowers for `chip`. Nothing is allocated."""
    capacity = CHIPS[chip].memory_bytes
    try:
        memory = finish(lower()).memory_analysis()
    except jax.errors.JaxRuntimeError as why:
        return refused(str(why), capacity)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return CompiledMemory(held, memory.temp_size_in_bytes, total, capacity)


def refused(said: str, capacity: int) -> CompiledMemory:
    """What a compiler's refusal tells of main memory: at least so many bytes were needed.

    Raises:
      jax.errors.JaxRuntimeError: it refused for another reason.
    """
    sizes = re.findall(r"([0-9.]+)([KMGT])\b", said)
    if "RESOURCE_EXHAUSTED" not in said or not re.search(r"\bhbm\b", said, re.IGNORECASE) or not sizes:
        raise jax.errors.JaxRuntimeError(said)
    needed = max(float(size) * 1024 ** (1 + "KMGT".index(unit)) for size, unit in sizes)
    return CompiledMemory(None, None, int(needed), capacity, " ".join(said.split(". HLO module")[0].split()))


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
