"""A training step laid out on a mesh, before there are any arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.sharding.rules import ShardingRules, laid_out, named_shardings
from jvlmm.training.lora import (
    ADAPTERS,
    LoraOptions,
    adapted_loss,
    adapted_modules,
    adapter_axes,
    adapter_optimizer,
    init_adapters,
)
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.placement import batch_placement, state_shardings
from jvlmm.training.state import TrainState, create_state
from jvlmm.training.step import LossFn, TrainStep, make_train_step


@dataclass(frozen=True)
class PreparedTraining:
    """What a run executes and a plan compiles."""

    create: Callable[[Any], TrainState]  # from parameters, which it takes over
    step: TrainStep
    shapes: TrainState  # of ShapeDtypeStructs that say how they lie on the mesh
    shardings: TrainState
    freeze: tuple[str, ...]  # modules whose own weights are not trained
    adapted: tuple[str, ...]  # those of them that have adapters


def prepare(
    config: ModelConfig,
    loss_fn: LossFn,
    optimizer: OptimizerOptions,
    total_steps: int,
    mesh: Mesh,
    rules: ShardingRules,
    batch_size: int,
    platform: str,
    lora: LoraOptions | None = None,
    seed: int = 0,
    place: Callable[[Any], Any] | None = None,
) -> PreparedTraining:
    """Training of a model of `config` on the devices of `mesh`; `platform` as JAX names it.

    With `lora` the state has a module of adapters, new ones of `seed`, and these alone are trained. `place` puts a host
    batch on the devices; None where every process has the rows of its own devices.
    """
    shapes, logical = abstract_params(config)
    adapted, extend = (), lambda params: params
    if lora is not None:
        optimizer = adapter_optimizer(optimizer, tuple(shapes))
        loss_fn, adapted = adapted_loss(loss_fn, lora), adapted_modules(config, lora)
        extend = lambda params: {**params, ADAPTERS: init_adapters(config, lora, jax.random.key(seed))}  # noqa: E731
        logical = {**logical, ADAPTERS: adapter_axes(config, lora)}
    rule = make_optimizer(optimizer, total_steps, tuple(logical))
    create = lambda params: create_state(extend(params), rule)  # noqa: E731
    state = jax.eval_shape(create, shapes)
    shardings = state_shardings(state, named_shardings(mesh, rules, logical, state.params), mesh)
    place = place or batch_placement(mesh, rules, batch_size)
    step = make_train_step(loss_fn, rule, shardings, place, platform=platform)
    return PreparedTraining(create, step, laid_out(state, shardings), shardings, optimizer.freeze, adapted)
