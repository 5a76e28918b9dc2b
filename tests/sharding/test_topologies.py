"""Slices by name: what one device of them can do, and how a wrong name is refused."""

import pytest

from jvlmm.errors import ConfigError
from jvlmm.sharding.accelerators import ACCELERATORS, accelerator_of
from jvlmm.sharding.topologies import parse_topology


@pytest.mark.parametrize(
    ("text", "devices"),
    [("v5e:4x4", 16), ("v5p:2x2x2", 8), ("v4:2x2x2", 16), ("tpu7x:2x2x1", 8), ("h100:8", 8), ("2xv5e:4x4", 32)],
)
def test_devices_of_a_topology(text, devices):
    topology = parse_topology(text)
    assert topology.num_devices == devices
    assert topology.compiles == (not text.startswith("h"))


@pytest.mark.parametrize("text", ["v5p", "v9:2x2", "xv5e:4x4", "v5e:4*4", "v5e:", ""])
def test_an_unknown_topology_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigError, match="write v5e:4x4, v5p:4x4x4, 2xv5e:16x16 or h100:8, with one of v4, v5e"):
        parse_topology(text)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H200", "h200"), ("TPU7x", "tpu7x")],
)
def test_device_kinds_are_told_apart(kind, name):
    assert accelerator_of(kind) == ACCELERATORS[name]
    assert accelerator_of("cpu") is None
