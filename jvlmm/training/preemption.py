"""SIGTERM as a flag: cloud machines announce their end with it, and leave time for one checkpoint."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvlmm.sharding.hosts import AgreedExit
from jvlmm.termination import EXIT_CODE, Terminated, held


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
        self.received = self._ends = self._interrupts = False
        self._listens = threading.current_thread() is threading.main_thread()
        self._any = _AnyProcess() if jax.process_count() > 1 else None
        self._asked: jax.Array | None = None  # int32 []: of the step before

    def reached(self) -> bool:
        """Whether to save and end after this step; every process must ask at every step."""
        if self._any is None:
            self._ends = self.received
        else:
            self._ends = self._asked is not None and bool(self._asked)
            self._asked = self._any(self.received)
        return self._ends

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context of work that need not be done to its end: there SIGTERM raises Terminated at once."""
        self._interrupts = True
        try:
            with held(False):
                yield
        finally:
            self._interrupts = False

    @property
    def alone(self) -> bool:
        """Whether no other process waits for what this one does."""
        return self._any is None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if self._interrupts:
            raise Terminated

    def __enter__(self) -> "Preemption":
        self._held = ExitStack()
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._held.enter_context(held())
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        self._held.close()
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)
            if self.received and not self._ends and kind is None:
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
