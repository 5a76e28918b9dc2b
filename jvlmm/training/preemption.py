"""SIGTERM as a flag: cloud machines announce their end with it, and leave time for one checkpoint."""

import os
import signal
import threading
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvlmm.sharding.hosts import AgreedExit

EXIT_CODE = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended


class Preempted(AgreedExit):
    """Raised after the checkpoint that answers a SIGTERM; ends the process with exit code 143."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Context in which SIGTERM asks for an end instead of ending the process.

    A handler of Python sets a flag; it can do so in the main thread only, elsewhere SIGTERM keeps its usual effect.
    Several processes add their flags up on the devices, behind the training step, and read the sum one step later:
    so all of them end after the same step, whichever got the signal, and none waits for it. JAX's own service
    agrees on a step as well, but swallows the signal outside training loops.
    """

    def __init__(self):
        self._received = self._ends = False
        self._listens = threading.current_thread() is threading.main_thread()
        self._any = _AnyProcess() if jax.process_count() > 1 else None
        self._asked: jax.Array | None = None  # int32 []: of the step before

    def reached(self) -> bool:
        """Whether to save and end after this step; every process must ask at every step."""
        if self._any is None:
            self._ends = self._received
        else:
            self._ends = self._asked is not None and bool(self._asked)
            self._asked = self._any(self._received)
        return self._ends

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def __enter__(self) -> "Preemption":
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)
            if self._received and not self._ends and kind is None:
                os.kill(os.getpid(), signal.SIGTERM)  # it came too late for this loop


class _AnyProcess:
    """Callable `flag -> int32 []`: above 0 where the flag is set in any process; does not wait for the result."""

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
        self._mesh, self._split = mesh, NamedSharding(mesh, PartitionSpec("all"))
        self._sum = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> jax.Array:
        flags = np.full(jax.local_device_count(), flag, np.int32)
        with jax.set_mesh(self._mesh):
            return self._sum(jax.make_array_from_process_local_data(self._split, flags))
