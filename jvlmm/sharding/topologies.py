"""Devices of a TPU slice that is not here, for programs to be compiled for."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from jvlmm.errors import ConfigError
from jvlmm.sharding.accelerators import ACCELERATORS, Accelerator

_TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
_CORES = {"v4": 2, "tpu7x": 2}  # devices a chip; 1 elsewhere
_FORM = re.compile(r"((?P<slices>\d+)x)?(?P<name>[a-z][a-z0-9]*):(?P<shape>\d+(x\d+)*)")
# What the TPU runtime would ask the machine's metadata server for.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Topology:
    """A slice such as v5p:4x4x4, several of them such as 2xv5e:16x16, or GPUs of one node such as h100:8."""

    name: str
    kind: str
    accelerator: Accelerator
    shape: tuple[int, ...]  # chips along each axis of a slice
    slices: int = 1

    @property
    def compiles(self) -> bool:
        """Whether its compiler is at hand; GPU programs compile only where such a GPU is."""
        return self.kind in _TPUS

    @property
    def platform(self) -> str:
        """As JAX names the back end of its devices."""
        return "tpu" if self.compiles else "gpu"

    @property
    def num_devices(self) -> int:
        return self.slices * math.prod(self.shape) * _CORES.get(self.kind, 1)


def parse_topology(text: str) -> Topology:
    """Read `NAME:SHAPE` or `SLICESxNAME:SHAPE`. Raises ConfigError with what is allowed."""
    match = _FORM.fullmatch(text)
    if match is None or match["name"] not in ACCELERATORS:
        raise ConfigError(
            f"--topology {text!r} is unknown; write v5e:4x4, v5p:4x4x4, 2xv5e:16x16 or h100:8, with one of "
            f"{', '.join(ACCELERATORS)}"
        )
    shape, slices = tuple(int(n) for n in match["shape"].split("x")), int(match["slices"] or 1)
    topology = Topology(text, match["name"], ACCELERATORS[match["name"]], shape, slices)
    if not topology.num_devices:
        raise ConfigError(f"--topology {text!r} has no devices; write positive numbers, such as {match['name']}:8")
    if not topology.compiles and (len(shape) > 1 or match["slices"]):
        raise ConfigError(f"--topology {text!r}: GPUs have no shape; write their number, {match['name']}:8")
    return topology


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Devices programs can be compiled for but not run on; in the order `make_mesh` takes them.

    Raises ConfigError where libtpu is missing, and where there is no such slice.
    """
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(topology.shape) == 1 else {}
    options |= {"num_slices": topology.slices} if topology.slices > 1 else {}
    one_slice = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    with _environment(_ENVIRONMENT):
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=one_slice, **options)
        except Exception as error:
            reason = str(error).splitlines()[0]
            if "libtpu" in reason.lower() or importlib.util.find_spec("libtpu") is None:
                raise ConfigError(
                    f"the TPU compiler cannot be loaded ({reason}); install it: pip install 'jvlmm[tpu]'"
                ) from error
            raise ConfigError(
                f"--topology {topology.name} cannot be made: {reason}; ask for a slice that exists"
            ) from error
    return list(described.devices)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set what is not set, and take it back."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
