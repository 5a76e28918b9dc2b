"""A training step laid out on a mesh, before there are any arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.placement import batch_placement, state_shardings
from jvlmm.training.sft import make_sft_loss
from jvlmm.training.state import TrainState, create_state
from jvlmm.training.step import TrainStep, make_train_step


@dataclass(frozen=True)
class PreparedTraining:
    """What a run executes and a plan compiles."""

    create: Callable[[Any], TrainState]  # from parameters, which it takes over
    step: TrainStep
    shapes: TrainState  # of ShapeDtypeStructs that say how they lie on the mesh
    shardings: TrainState


def prepare_sft(
    config: ModelConfig,
    optimizer: OptimizerOptions,
    total_steps: int,
    mesh: Mesh,
    rules: ShardingRules,
    batch_size: int,
    platform: str,
) -> PreparedTraining:
    """Supervised fine-tuning of a model of `config` on the devices of `mesh`; `platform` as JAX names it."""
    shapes, logical = abstract_params(config)
    rule = make_optimizer(optimizer, total_steps, tuple(shapes))
    create = partial(create_state, optimizer=rule)
    state = jax.eval_shape(create, shapes)
    shardings = state_shardings(state, named_shardings(mesh, rules, logical, shapes), mesh)
    step = make_train_step(
        make_sft_loss(config), rule, shardings, batch_placement(mesh, rules, batch_size), platform=platform
    )
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return PreparedTraining(create, step, jax.tree.map(place, state, shardings), shardings)
