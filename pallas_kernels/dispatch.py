"""Which body of an op runs, and why not a better one.

Every op is a folder: a typed front door, and bodies beside it that compute the same thing. A body is a
module with a function named like the op and `refuses(ask) -> str | None`, the reason it cannot take a call.
Asking for a body by name runs that body or raises; asking for none takes the first that does not refuse.
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


class Choice(NamedTuple):
    """The answer of `explain`.

    Attributes:
      backend: the body that runs.
      interpret: whether it runs under the Pallas interpreter.
      refused: the bodies that were asked before it, each with its reason.
    """

    backend: str
    interpret: bool
    refused: Mapping[str, str]


def dispatch(op: str, backend: Backend | None, ask: Any) -> tuple[ModuleType, Choice]:
    """The body of `op` (a package name) that takes the call described by `ask`.

    Raises:
      ValueError: no such backend.
      NotImplementedError: the named body, or every body of this platform, refuses; the message says why.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    refused: dict[str, str] = {}
    for name in _candidates(backend):
        try:
            body = import_module(f"{op}.{name}")
        except ModuleNotFoundError as why:
            if why.name != f"{op}.{name}":
                raise
            refused[name] = "not written"
            continue
        reason = body.refuses(ask) or (_spread() if name in KERNELS and backend != "interpret" else None)
        if reason is None:
            return body, Choice(name, backend == "interpret", refused)
        refused[name] = reason
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise NotImplementedError(f"no body of {op.rpartition('.')[2]} takes this call ({reasons})")


def platform() -> str:
    """What is computed for: "cpu", "tpu" or "gpu". Inside `absent.pretend` that is the absent chip."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _spread() -> str | None:
    """Why no kernel may run under the mesh in force: the compiler can divide XLA's operations, not a kernel.

    A mesh is in force inside `jax.set_mesh`; shardings of a jit's arguments alone are not seen here, and then
    lowering a TPU kernel raises NotImplementedError.
    """
    mesh = jax.sharding.get_abstract_mesh()
    wide = [name for name in mesh.axis_names if mesh.shape[name] > 1 and name not in mesh.manual_axes]
    if wide:
        return f"the mesh has devices along {', '.join(wide)}; a kernel needs jax.shard_map around it"
    return None


def _candidates(backend: Backend | None) -> tuple[str, ...]:
    if backend is None:
        return _BEST_FIRST.get(platform(), ("xla",))
    return ("tpu",) if backend == "interpret" else (backend,)
