"""Compile a program for devices that are not here, and read off what one of them needs."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jvlmm.sharding.collectives import collective_bytes

_OUT_OF_MEMORY = (
    re.compile(r"HLO temporaries \((?P<used>[\d.]+)(?P<unit>[KMGT])\)"),
    re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]) of"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Footprint:
    """Of one program on one device; bytes."""

    arguments: int  # what it is handed: parameters, optimiser state, batch
    temporaries: int  # what it needs while it runs
    peak: int  # of all together, results that do not take the place of donated arguments included
    collectives: Mapping[str, int]  # received from other devices, by kind of operation
    compile_seconds: float
    host_temporaries: int = 0  # what it offloads to the memory of the host meanwhile
    complete: bool = True  # False where it does not fit: then the compiler gives `temporaries` alone


def compile_ahead(traced: jax.stages.Traced) -> Footprint:
    """Compile what was traced with shapes that lie on TPU devices; see `topologies.topology_devices`.

    A program that does not fit into the memory is an answer, too; other errors of the compiler are raised.
    """
    start = time.perf_counter()
    lowered = traced.lower(lowering_platforms=("tpu",))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        return Footprint(0, needed, needed, {}, seconds, complete=False)
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Footprint(
        arguments=arguments,
        temporaries=temporaries,
        peak=arguments + temporaries + results,
        collectives=collective_bytes(compiled.as_text()),
        compile_seconds=time.perf_counter() - start,
        host_temporaries=memory.host_temp_size_in_bytes,
    )


def _needed(message: str) -> int | None:
    """Bytes the compiler says it would have needed, None where memory is not what it lacks."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    match = next((m for pattern in _OUT_OF_MEMORY if (m := pattern.search(message))), None)
    return round(float(match["used"]) * _UNITS[match["unit"]]) if match else None
