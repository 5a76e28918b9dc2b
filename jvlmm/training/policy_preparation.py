"""A policy laid out on the mesh it is trained on and on the one that samples from it, before there are any arrays."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import on_mesh
from jvlmm.models.qwen2_5_vl import params_on_mesh
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.sharding.batches import batch_shardings, placed
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training.lora import ADAPTERS, LoraOptions, merge_adapters, with_adapters
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy_loss import Lesson, make_policy_loss
from jvlmm.training.preparation import PreparedTraining, prepare


@dataclass(frozen=True)
class PolicyMeshes:
    """Where a policy is trained and where it samples: all devices both times, shared out differently."""

    training: Mesh
    rollout: Mesh
    rules: ShardingRules

    def on(self, mesh: Mesh, config: ModelConfig) -> ModelConfig:
        """`config` as it runs there."""
        return on_mesh(config, mesh, self.rules)


@dataclass(frozen=True)
class PreparedPolicy:
    """What a run executes and a plan compiles: the update, and the weights that sample."""

    meshes: PolicyMeshes
    config: ModelConfig  # of the update and of log-probs
    rollout_config: ModelConfig  # of prompts and decoding
    lora: LoraOptions | None
    training: PreparedTraining

    def place(self, batch: Any) -> Any:
        """A host batch on the devices that train; every process has it whole."""
        return placed(batch, batch_shardings(batch, self.meshes.training, self.meshes.rules))

    def policy(self, params: Any) -> Any:
        """The parameters that compute log-probs: with the adapters, where these are trained."""
        return params if self.lora is None else with_adapters(self.base(params), params[ADAPTERS], self.lora)

    def trained(self, params: Any) -> Any:
        """The modules that the optimiser changes."""
        return {name: module for name, module in params.items() if name not in self.training.freeze}

    @staticmethod
    def base(params: Any) -> Any:
        """The model's own parameters: with LoRA the reference model, which never changes."""
        return {name: module for name, module in params.items() if name != ADAPTERS}

    def sampler(self, params: Any) -> Any:
        """The parameters that sample: adapters merged, in the type of products, laid out for decoding."""
        if not self.converts:
            return params
        params = self._converted(params)
        return params if self._is_one_mesh else jax.device_put(params, self.rollout_shardings, donate=True)

    @property
    def converts(self) -> bool:
        """Whether the parameters that sample are others than those that are trained."""
        return self.lora is not None or self.config.param_dtype != self.config.dtype or not self._is_one_mesh

    @property
    def rollout_shapes(self) -> Any:
        """ShapeDtypeStructs of the parameters that sample, which say how they lie."""
        return self._rollout_params[0]

    @property
    def rollout_shardings(self) -> Any:
        return self._rollout_params[1]

    @cached_property
    def _rollout_params(self):
        return params_on_mesh(self.rollout_config, self.meshes.rollout, self.meshes.rules)

    @cached_property
    def _converted(self):
        dtype, shardings = jnp.dtype(self.config.dtype), self.base(self.training.shardings.params)

        def convert(params):
            base = self.base(params)
            if self.lora is not None:
                base = merge_adapters(base, params[ADAPTERS], self.lora, self.config.dtype)
            return jax.tree.map(lambda x: x.astype(dtype), base)

        return jax.jit(convert, out_shardings=shardings)

    @property
    def _is_one_mesh(self) -> bool:
        return self.meshes.training == self.meshes.rollout


@dataclass(frozen=True)
class OtherModel:
    """A further model on the mesh of the update, in the type of products; it does not change."""

    config: ModelConfig
    shapes: Any  # ShapeDtypeStructs of its parameters, which say how they lie
    shardings: Any


def other_model(config: ModelConfig, policy: PreparedPolicy) -> OtherModel:
    """A model of this shape beside the policy, to compute log-probs of the same tokens."""
    like = policy.config
    how = ("scan_layers", "flatten_tokens", "dtype", "mlp_tile", "mlp_parts", "attention", "rules")
    config = replace(config, param_dtype=like.dtype, **{name: getattr(like, name) for name in how})
    return OtherModel(config, *params_on_mesh(config, policy.meshes.training, policy.meshes.rules))


def prepare_policy(
    config: ModelConfig,
    rollout_config: ModelConfig,
    objective: GRPOConfig,
    optimizer: OptimizerOptions,
    updates: int,
    meshes: PolicyMeshes,
    rows: int,
    platform: str,
    lora: LoraOptions | None,
    temperature: float = 1.0,
    seed: int = 0,
    lesson: Lesson | None = None,
) -> PreparedPolicy:
    """A policy of `config` trained with `rows` prompts a device step; `platform` as JAX names it.

    Rollouts are drawn at `temperature`, and learnt at it. With `lora` adapters are trained, new ones of `seed`.
    `lesson` is what it makes of a teacher's words.
    """
    config = meshes.on(meshes.training, config)
    place = lambda batch: placed(batch, batch_shardings(batch, meshes.training, meshes.rules))  # noqa: E731
    layout = meshes.training, meshes.rules, rows, platform
    loss = make_policy_loss(config, objective, temperature, lesson)
    training = prepare(config, loss, optimizer, updates, *layout, lora=lora, seed=seed, place=place)
    rollout_config = meshes.on(meshes.rollout, rollout_config)
    return PreparedPolicy(meshes, config, rollout_config, lora, training)
