"""Selection of the backend that runs an op.

Every op is a folder: a typed entry point, and backends beside it that compute the same result. A backend is
a module with a function named like the op and `unsupported(call) -> str | None`, the reason it cannot run a
call. A backend requested by name runs or raises. Without a name, the first backend that supports the call
runs.
"""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax

type Backend = Literal["reference", "xla", "tpu", "gpu", "interpret"]

BACKENDS = ("reference", "xla", "tpu", "gpu", "interpret")
KERNELS = ("tpu", "gpu")
_BEST_FIRST = {"tpu": ("tpu", "xla"), "gpu": ("gpu", "xla"), "cpu": ("xla",)}


class BackendChoice(NamedTuple):
    """The result of `explain`.

    Attributes:
      backend: the backend that runs.
      interpret: whether it runs under the Pallas interpreter.
      unsupported: the backends tried before it, each with the reason it cannot run the call.
    """

    backend: str
    interpret: bool
    unsupported: Mapping[str, str]


def dispatch(op: str, backend: Backend | None, call: Any) -> tuple[ModuleType, BackendChoice]:
    """The backend module of `op` (a package name) that runs the call described by `call`.

    Raises:
      ValueError: no such backend.
      NotImplementedError: the named backend, or every backend of this platform, does not support the call.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    unsupported: dict[str, str] = {}
    for name in _candidates(backend):
        try:
            implementation = import_module(f"{op}.{name}")
        except ModuleNotFoundError as why:
            if why.name != f"{op}.{name}":
                raise
            unsupported[name] = "not implemented"
            continue
        reason = implementation.unsupported(call)
        if reason is None and name in KERNELS and backend != "interpret":
            reason = _sharded_mesh()
        if reason is None:
            return implementation, BackendChoice(name, backend == "interpret", unsupported)
        unsupported[name] = reason
    reasons = "; ".join(f"{name}: {why}" for name, why in unsupported.items())
    raise NotImplementedError(f"no backend of {op.rpartition('.')[2]} supports this call ({reasons})")


def platform() -> str:
    """The platform compiled for: "cpu", "tpu" or "gpu". Inside `aot.target` that of the target chip."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _sharded_mesh() -> str | None:
    """Why no kernel can run under the current mesh: the compiler partitions XLA operations but not kernels.

    The current mesh is the one of `jax.set_mesh`. Shardings of a jit's arguments alone are not visible here;
    lowering a TPU kernel then raises NotImplementedError.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sharded = [name for name in mesh.axis_names if mesh.shape[name] > 1 and name not in mesh.manual_axes]
    if sharded:
        return f"the mesh has devices along {', '.join(sharded)}; a kernel needs jax.shard_map around it"
    return None


def _candidates(backend: Backend | None) -> tuple[str, ...]:
    if backend is None:
        return _BEST_FIRST.get(platform(), ("xla",))
    return ("tpu",) if backend == "interpret" else (backend,)
