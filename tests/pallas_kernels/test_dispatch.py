"""Which backend runs where."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, use_abstract_mesh

from pallas_kernels.attention import explain

ARRAYS = [jax.ShapeDtypeStruct((4, 64, heads, 128), "bfloat16") for heads in (8, 2, 2)]


def tpus(axis_type: AxisType, devices: int = 4) -> AbstractMesh:
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    return AbstractMesh((devices,), ("data",), axis_types=(axis_type,), abstract_device=device)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_over_several_devices_the_compiler_divides_xla_and_no_kernel(axis_type):
    with use_abstract_mesh(tpus(axis_type)):
        choice = explain(*ARRAYS)
        assert choice.backend == "xla"
        assert "devices along data; a kernel needs jax.shard_map" in choice.unsupported["tpu"]
        with pytest.raises(NotImplementedError, match="needs jax"):
            explain(*ARRAYS, backend="tpu")


def test_a_device_by_itself_runs_its_kernel_alone_or_inside_shard_map():
    with use_abstract_mesh(tpus(AxisType.Auto, devices=1)):
        assert explain(*ARRAYS).backend == "tpu"
    chosen = []

    def one_device(q, k, v):
        chosen.append(explain(q, k, v).backend)
        return q

    with use_abstract_mesh(tpus(AxisType.Auto)):
        spread = jax.shard_map(one_device, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
        jax.eval_shape(spread, *ARRAYS)
    assert chosen == ["tpu"]
