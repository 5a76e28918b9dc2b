"""How a platform runs a model of a given shape best."""

from dataclasses import replace
from typing import Literal

from jax.sharding import AbstractMesh, Mesh

from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.remat import Remat
from jvlmm.sharding.rules import ShardingRules

Attention = Literal["auto", "xla", "splash", "cudnn"]


def for_training(
    config: ModelConfig,
    platform: str,
    remat: Remat = "none",
    attention: Attention = "auto",
) -> ModelConfig:
    """`config` with float32 parameters; `platform` as `jax.default_backend()` names it.

    On CPU layers are unrolled and everything is float32, as bfloat16 products are emulated there; elsewhere layers
    are scanned and products run in bfloat16. Attention is by default the splash kernel on TPU and XLA's elsewhere;
    ConfigError where the platform has not the one asked for.
    """
    on_cpu = platform == "cpu"
    return replace(
        config,
        scan_layers=not on_cpu,
        flatten_tokens=on_cpu,
        dtype="float32" if on_cpu else "bfloat16",
        param_dtype="float32",
        remat=remat,
        mlp_tile=1024 if remat in ("full", "offload") and not on_cpu else None,
        mlp_parts=4,
        attention=_attention(attention, platform),
    )


def _attention(asked: Attention, platform: str) -> Literal["xla", "splash", "cudnn"]:
    if asked == "auto":
        return "splash" if platform == "tpu" else "xla"
    home = {"splash": "tpu", "cudnn": "gpu"}.get(asked, platform)
    if home != platform:
        raise ConfigError(f"attention={asked!r} runs on {home.upper()} alone, this is {platform.upper()}; choose auto")
    return asked


def for_inference(config: ModelConfig, platform: str) -> ModelConfig:
    """As `for_training`, with parameters kept in the type of the products."""
    config = for_training(config, platform)
    return replace(config, param_dtype=config.dtype)


def on_mesh(config: ModelConfig, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> ModelConfig:
    """`config` as it runs there: one device has nothing to share out."""
    return replace(config, rules=rules) if mesh.size > 1 else config


def compiler_options(platform: str) -> dict[str, str]:
    """What XLA should be told for programs that need much memory.

    On CPU its default order of operations favours running many at once, which on few cores gains little and keeps
    more arrays alive.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}
