"""A preset that is small enough to be measured in a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jvlmm.models.config import ModelConfig
from jvlmm.models.presets import PRESETS, TINY

TOY = replace(
    TINY, vision=replace(TINY.vision, depth=2, fullatt_block_indexes=(1,)), text=replace(TINY.text, num_layers=1)
)


@contextmanager
def toy_preset(compiled: Path, config: ModelConfig = TOY) -> Iterator[str]:
    """The name of the preset, while it is one; the processes of a benchmark keep its programs for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setitem(PRESETS, "toy", config)
        yield "toy"
