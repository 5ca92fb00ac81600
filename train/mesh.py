"""The device mesh, its four named axes, and the table that shards each kind of parameter over it.

`data` splits the batch; `fsdp` splits the batch and the parameters; `tensor` splits heads and feed-forward
width; `expert` splits experts. The compiler inserts the communication (all axes are of type Auto).
"""

import re
from dataclasses import astuple, dataclass

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "expert")

# The first match applies; axes that do not divide a dimension are dropped. Matrices are [in, out]; expert
# weights have the expert axis first.
RULES: tuple[tuple[str, P], ...] = (
    (r"ffn\.(gate|up)$|ffn\.(gate|up)\.", P("fsdp", "tensor")),
    (r"ffn\.down", P("tensor", "fsdp")),
    (r"attention\.(q|k|v)\b", P("fsdp", "tensor")),
    (r"attention\.o\b", P("tensor", "fsdp")),
    (r"embed", P("tensor", "fsdp")),
    (r"lm_head", P("fsdp", "tensor")),
)


@dataclass
class MeshShape:
    """Devices along each axis.

    Attributes:
      data: copies of the model, each on its own rows (0 = all remaining devices).
      fsdp: devices that share each copy's weights and optimizer state, and its rows.
      tensor: devices that share each matrix product.
      expert: devices that share the experts.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    def check(self) -> None:
        if min(astuple(self)) < 0 or min(self.fsdp, self.tensor, self.expert) < 1:
            raise ValueError(f"mesh {self} has an axis without devices")


def make(shape: MeshShape) -> Mesh:
    """Builds a mesh over all devices.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices, fixed = jax.device_count(), shape.fsdp * shape.tensor * shape.expert
    data = shape.data or max(1, devices // fixed)
    if data * fixed != devices:
        raise ValueError(
            f"mesh {data} x {shape.fsdp} x {shape.tensor} x {shape.expert} does not fit {devices} devices"
        )
    sizes = (data, shape.fsdp, shape.tensor, shape.expert)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of the parameter at `path`, and of optimizer state of its shape."""
    rule = next((spec for pattern, spec in RULES if re.search(pattern, path)), P())
    names = list(rule)[: len(shape)]
    if len(shape) == 3 and "ffn" in path:
        names = ["expert", *names]
    fits = [n if n and size % mesh.shape[n] == 0 else None for n, size in zip(names, shape)]
    return NamedSharding(mesh, P(*fits))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over data and fsdp, replicated over tensor and expert."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def join(coordinator: str, processes: int, process: int) -> None:
    """Connects to the other processes of a run. Call it before anything touches a device.

    Raises:
      ValueError: there are several processes but no coordinator, or `process` is out of range.
    """
    if processes == 1:
        return
    if not coordinator:
        raise ValueError(f"--processes={processes} needs --coordinator=HOST:PORT")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process} of --processes={processes}: numbers are 0 to {processes - 1}")
    jax.distributed.initialize(coordinator, processes, process)
