"""How a platform runs a model."""

import pytest

from jvlmm.errors import ConfigError
from jvlmm.models.execution import for_training
from jvlmm.models.presets import PRESETS


@pytest.mark.parametrize(
    ("platform", "asked", "used"),
    [
        ("cpu", "auto", "xla"),
        ("gpu", "auto", "xla"),
        ("tpu", "auto", "splash"),
        ("tpu", "xla", "xla"),
        ("gpu", "cudnn", "cudnn"),
    ],
)
def test_attention_suits_the_platform(platform, asked, used):
    assert for_training(PRESETS["tiny"], platform, attention=asked).attention == used


@pytest.mark.parametrize(("platform", "asked", "home"), [("cpu", "splash", "TPU"), ("tpu", "cudnn", "GPU")])
def test_attention_of_another_platform_is_refused(platform, asked, home):
    with pytest.raises(ConfigError, match=f"attention='{asked}' runs on {home} alone, this is {platform.upper()}"):
        for_training(PRESETS["tiny"], platform, attention=asked)
