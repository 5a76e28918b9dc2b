"""XLA programs kept on disk, so that the second start of a run compiles nothing."""

from pathlib import Path

import jax


def enable_compilation_cache(directory: str | Path) -> None:
    """Keep compiled programs in `directory`; call before the first program is compiled.

    Keys hold the program, its options, the devices and the versions of jaxlib, so a shared directory is
    safe. An unwritable one only costs the time to compile.
    """
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser().absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
