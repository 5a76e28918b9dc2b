"""Flags of XLA for the tests, which other processes that they start take over."""

from importlib import metadata

# The toy programs run for moments and compile for seconds: XLA's own optimisations cost four times what they spare.
FAST_COMPILATION = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):  # a later one ends at a flag that it does not know
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def on_devices(count: int) -> str:
    """Flags for so many simulated devices."""
    return f"{FAST_COMPILATION} --xla_force_host_platform_device_count={count}"
