"""Meshes over simulated devices, and the table from logical to mesh axes."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from toy_model import needs_eight

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, batch_sharding, named_shardings, partition_spec


@needs_eight
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (MeshOptions(), (8, 1, 1, 1)),
        (MeshOptions(data=1, fsdp=-1), (1, 8, 1, 1)),
        (MeshOptions(data=-1, fsdp=2, tensor=2), (2, 2, 2, 1)),
        (MeshOptions(data=1, fsdp=2, tensor=2, context=2), (1, 2, 2, 2)),
    ],
)
def test_mesh_takes_all_devices_on_auto_axes(options, shape):
    mesh = make_mesh(options, jax.devices()[:8])
    assert mesh.axis_names == ("data", "fsdp", "tensor", "context")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()[:8]}


@needs_eight
@pytest.mark.parametrize("options", [MeshOptions(fsdp=3), MeshOptions(data=1), MeshOptions(data=3, fsdp=3)])
def test_mesh_that_does_not_divide_is_refused(options):
    with pytest.raises(ConfigError, match=r"does not fit 8 device\(s\).*-1"):
        make_mesh(options, jax.devices()[:8])


class SliceDevice(types.SimpleNamespace):
    """What a mesh asks of a device of a job with several slices."""

    __hash__ = object.__hash__


def two_slices():
    of_all = {"platform": "cpu", "device_kind": "cpu", "process_index": 0}
    return [SliceDevice(id=i, slice_index=i % 2, **of_all) for i in range(8)]


@pytest.mark.parametrize(
    ("options", "slices"),  # of the devices along data, then fsdp
    [
        (MeshOptions(data=2, fsdp=-1), [[0, 0, 0, 0], [1, 1, 1, 1]]),
        (MeshOptions(data=4, fsdp=1, tensor=2), [[0, 0], [0, 0], [1, 1], [1, 1]]),
        (MeshOptions(data=1, fsdp=4, context=2), [[0, 0, 0, 0, 1, 1, 1, 1]]),
    ],
)
def test_only_data_or_fsdp_goes_between_slices(options, slices):
    mesh = make_mesh(options, two_slices())
    assert [[device.slice_index for device in row.flat] for row in mesh.devices] == slices


def test_tensor_parallelism_between_slices_is_refused():
    with pytest.raises(
        ConfigError, match=r"mesh\.data=1, mesh\.fsdp=1 cannot go between 2 slices; make mesh\.data a multiple of 2"
    ):
        make_mesh(MeshOptions(data=1, tensor=-1), two_slices())


@pytest.mark.parametrize("sizes", [{"data": 0}, {"tensor": -2}, {"data": -1, "fsdp": -1}])
def test_impossible_mesh_options_are_refused(sizes):
    with pytest.raises(ConfigError, match="-1"):
        MeshOptions(**sizes)


def test_partition_spec_follows_the_rules():
    rules = ShardingRules()
    assert partition_spec(rules, ("embed", "heads", "head_dim")) == PartitionSpec("fsdp", "tensor", None)
    assert partition_spec(rules, ("batch", "head_dim", None)) == PartitionSpec(("data", "fsdp"), None, None)
    replicated = apply_overrides(rules, ["heads=", "embed=fsdp,tensor"])
    assert partition_spec(replicated, ("embed", "heads")) == PartitionSpec(("fsdp", "tensor"), None)


def test_collision_names_both_axes_and_the_mesh_axis():
    with pytest.raises(ConfigError, match="'vocab' and 'embed'.*'tensor'"):
        partition_spec(ShardingRules(embed=("tensor",)), ("vocab", "embed"))


def test_unknown_logical_axis_is_refused():
    with pytest.raises(ConfigError, match="'vocabulary'; known: vocab"):
        partition_spec(ShardingRules(), ("vocabulary",))


@needs_eight
def test_named_shardings_place_every_leaf():
    mesh = make_mesh(MeshOptions(fsdp=2, tensor=2), jax.devices()[:8])
    logical = {"kernel": ("embed", "mlp"), "stack": [(None,), ()]}
    arrays = {"kernel": np.zeros((4, 6)), "stack": [np.zeros(3), np.zeros(())]}
    placed = jax.device_put(arrays, named_shardings(mesh, ShardingRules(), logical, arrays))
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 3)
    assert placed["stack"][0].is_fully_replicated
    batch = jax.device_put(np.zeros((8, 5)), batch_sharding(mesh, ShardingRules()))
    assert batch.addressable_shards[0].data.shape == (2, 5)


@needs_eight
def test_errors_name_the_array_and_the_rule():
    mesh = make_mesh(MeshOptions(fsdp=2, tensor=2), jax.devices()[:8])
    arrays = {"decoder": {"kernel": np.zeros((4, 3))}}
    logical = {"decoder": {"kernel": ("embed", "kv_heads")}}
    with pytest.raises(ConfigError, match=r"decoder\.kernel: axis 'kv_heads' of size 3.*rules\.kv_heads="):
        named_shardings(mesh, ShardingRules(), logical, arrays)
    with pytest.raises(ConfigError, match="embed=expert: the mesh has no such axis; allowed: data, fsdp, tensor"):
        named_shardings(mesh, ShardingRules(embed=("expert",)), logical)
