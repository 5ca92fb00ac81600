"""Ahead-of-time compilation for a chip that this machine does not have.

    compiled = compile_for("v5e", fn, *shapes)             # TPU: needs the aot-tpu extra; GPU: aot-cuda
    lowered = lower_for("v5e", fn, *shapes)                # needs no extra
    memory = compiled_memory("v5e", lambda: lowered)       # memory needed on the chip, and whether it fits

A kernel that does not fit VMEM or shared memory, or uses an operation that its chip lacks, fails here as on
the device. Speed and races are not observed.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh


class Chip(NamedTuple):
    """A chip: its device kind and platform in JAX, its topology, and the wheel that holds its compiler.

    `memory_bytes` is the part of its main memory that programs may use.
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
# libtpu looks for a TPU host, and for other processes that hold its chips. There are none.
LIBTPU_ENVIRONMENT = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The compiler's description of an H100 SXM (public data sheet and CUDA's occupancy tables).
H100_TARGET_CONFIG = """
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
    """The reason why nothing can be compiled for `chip` here, or None."""
    wheel = CHIPS[chip].wheel
    top = wheel.partition(".")[0]
    if importlib.util.find_spec(top) is None or importlib.util.find_spec(wheel) is None:
        return f"{wheel} is not installed (make aot installs it)"
    return None


@contextlib.contextmanager
def target(chip: str) -> Iterator[None]:
    """Traces and lowers for `chip` inside the context; ops choose its backends."""
    device = AbstractDevice(
        device_kind=CHIPS[chip].kind, num_cores=CHIPS[chip].cores, platform=CHIPS[chip].family
    )
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        yield


def lower_for(chip: str, fn: Callable[..., Any], *shapes: Any, **jit_options: Any) -> jax.stages.Lowered:
    """Lowers `fn` for one device of `chip`; shapes are pytrees of `jax.ShapeDtypeStruct`."""
    with target(chip):
        traced = jax.jit(fn, **jit_options).trace(*shapes)
        return traced.lower(lowering_platforms=(CHIPS[chip].platform,))


def compile_for(chip: str, fn: Callable[..., Any], *shapes: Any, **jit_options: Any) -> jax.stages.Compiled:
    """Compiles `fn` for one device of `chip`; `jit_options` are those of `jax.jit`.

    Raises:
      ModuleNotFoundError: the compiler is not installed; the message names the extra.
      jax.errors.JaxRuntimeError: the program does not fit.
    """
    return compile_lowered(lower_for(chip, fn, *shapes_on(chip, *shapes), **jit_options))


def shapes_on(chip: str, *shapes: Any) -> Any:
    """The same shapes, placed on one device of `chip`."""
    sharding = NamedSharding(jax.sharding.Mesh(np.array([device(chip)]), ("x",)), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def device(chip: str) -> jax.Device:
    """One device of the absent `chip`, for a mesh.

    Raises:
      ModuleNotFoundError: its compiler is not installed.
    """
    if why := missing(chip):
        raise ModuleNotFoundError(why)
    description = CHIPS[chip]
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if description.family == "gpu":
        options = {"target_config": H100_TARGET_CONFIG, "topology": description.topology}
        return topologies.get_topology_desc("", platform=description.platform, **options).devices[0]
    return topologies.get_topology_desc(description.topology, platform=description.platform).devices[0]


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program that was lowered for an absent device."""
    with _no_persistent_cache():
        return lowered.compile()


class CompiledMemory(NamedTuple):
    """A compiled program's memory on one chip, in bytes.

    Attributes:
      arguments: inputs, and outputs that do not alias donated inputs; None where compilation failed.
      temporaries: the peak beside them; None where compilation failed.
      total: arguments, temporaries and the program's code; where compilation failed, the need it reported.
      capacity: the memory of the chip.
      why: the compiler's message where compilation failed.
    """

    arguments: int | None
    temporaries: int | None
    total: int
    capacity: int
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether the program compiled and its memory is within the chip's."""
        return not self.why and self.total <= self.capacity


def compiled_memory(chip: str, lower: Callable[[], jax.stages.Lowered]) -> CompiledMemory:
    """The memory of the program that `lower()` lowers for `chip`. Nothing is allocated."""
    capacity = CHIPS[chip].memory_bytes
    try:
        memory: Any = compile_lowered(lower()).memory_analysis()
    except jax.errors.JaxRuntimeError as why:
        return parse_out_of_memory(str(why), capacity)
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return CompiledMemory(arguments, memory.temp_size_in_bytes, total, capacity)


def parse_out_of_memory(message: str, capacity: int) -> CompiledMemory:
    """The main memory that the compiler's error message reports as needed.

    Raises:
      jax.errors.JaxRuntimeError: compilation failed for another reason.
    """
    sizes = re.findall(r"([0-9.]+)([KMGT])\b", message)
    if "RESOURCE_EXHAUSTED" not in message or not re.search(r"\bhbm\b", message, re.IGNORECASE) or not sizes:
        raise jax.errors.JaxRuntimeError(message)
    needed = max(float(size) * 1024 ** (1 + "KMGT".index(unit)) for size, unit in sizes)
    return CompiledMemory(
        None, None, int(needed), capacity, " ".join(message.split(". HLO module")[0].split())
    )


@contextlib.contextmanager
def _no_persistent_cache() -> Iterator[None]:
    """Disables the persistent cache: programs for an absent chip can be stored there, but not loaded."""
    enabled = jax.config.jax_enable_compilation_cache
    try:
        set_persistent_cache(False)
        yield
    finally:
        set_persistent_cache(enabled)


def set_persistent_cache(enabled: bool) -> None:
    """Switches JAX's own cache of compiled programs on or off, for this process."""
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # a process checks only once whether there is a cache
