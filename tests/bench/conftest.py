"""A model that is small enough to be measured in a test."""

from dataclasses import replace

import pytest

from jvlmm.models.presets import PRESETS


@pytest.fixture(scope="package")
def toy(tmp_path_factory):
    """The name of a preset of one decoder layer; the processes of a benchmark keep its programs for one another."""
    tiny = PRESETS["tiny"]
    vision = replace(tiny.vision, depth=2, fullatt_block_indexes=(1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compilations")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setitem(PRESETS, "toy", replace(tiny, vision=vision, text=replace(tiny.text, num_layers=1)))
        yield "toy"
