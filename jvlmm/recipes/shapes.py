"""The shape of a model that a plan needs, with or without its checkpoint."""

from pathlib import Path

from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface import load_config
from jvlmm.models.presets import PRESETS, RELEASED


def model_shape(folder: str) -> ModelConfig:
    """The shape of a checkpoint folder, or of a released checkpoint or preset of that name where no folder is here."""
    path = Path(folder).expanduser()
    if (path / "config.json").is_file():
        return load_config(path)
    preset = RELEASED.get(path.name, path.name)
    if preset not in PRESETS:
        raise ConfigError(
            f"model {folder!r} is no checkpoint folder; to plan without one, name {', '.join(RELEASED)}, "
            f"or a preset: {', '.join(PRESETS)}"
        )
    return PRESETS[preset]
