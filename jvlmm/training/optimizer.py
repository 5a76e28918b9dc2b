"""AdamW or Muon with a schedule, per-module learning rates and frozen modules."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jvlmm.errors import ConfigError
from jvlmm.training.moments import scale_by_adam_in_bfloat16

_UNDECAYED = re.compile(r"bias|scale|norm|^ln(_|$)")
_AXES = {"qkv": (1, 3), "q_proj": (1, 2), "k_proj": (1, 2), "v_proj": (1, 2), "o_proj": (2, 1), "proj": (2, 1)}
"""Axes a kernel contracts and axes it gives, where these are not one and one; axes before them stack layers."""


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), or Muon. Modules are the top-level keys of the parameters.

    With `rule="muon"` the kernels of linear layers are updated by Muon (Jordan et al. 2024), at the root mean square
    that AdamW's updates have (0.2 of the rate; Liu et al., arXiv:2502.16982), and everything else by AdamW.
    """

    learning_rate: float = 1e-5  # peak
    rule: Literal["adamw", "muon"] = "adamw"
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    end_learning_rate: float = 0.0  # where the schedule arrives after the last step
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # what moments are kept in; see `training.moments`
    weight_decay: float = 0.0  # of matrices and embeddings; norms and biases never decay
    clip_norm: float | None = 1.0  # global norm over the trainable modules
    learning_rates: Mapping[str, float] = field(default_factory=dict)  # module → multiplier of learning_rate
    freeze: tuple[str, ...] = ()  # modules without gradient and without optimiser state


@dataclass(frozen=True)
class Optimizer:
    """An optax transformation of the trainable modules, its schedule, and what is frozen."""

    transform: optax.GradientTransformation
    schedule: Callable[[Any], Any]  # step → learning rate
    freeze: frozenset[str]

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trainable, frozen) modules of `params`."""
        trainable = {name: tree for name, tree in params.items() if name not in self.freeze}
        return trainable, {name: params[name] for name in params if name in self.freeze}

    def init(self, trainable: Mapping[str, Any]) -> Any:
        """Optimiser state; its moments have their own dtype, whatever that of the parameters."""
        return self.transform.init(_float32(trainable))

    def learning_rate(self, opt_state: Any) -> jax.Array:
        """float32 [], that of the next update: updates that were skipped have not moved it."""
        done = optax.tree.get(opt_state, "count", filtering=_is_of_schedule)
        return jnp.asarray(self.schedule(done), jnp.float32)

    def update(self, gradients: Any, opt_state: Any, trainable: Any) -> tuple[Any, Any]:
        """(new parameters in their own dtype, new optimiser state)."""
        updates, opt_state = self.transform.update(_float32(gradients), opt_state, _float32(trainable))
        return optax.apply_updates(trainable, updates), opt_state


def make_schedule(options: OptimizerOptions, total_steps: int) -> Callable[[Any], Any]:
    """Learning rate of update `step` (from 0): linear warm-up to the peak, then the named decay.

    The first update already moves: rate(step) = peak · (step + 1) / warmup_steps during warm-up.
    """
    peak, end, warmup = options.learning_rate, options.end_learning_rate, options.warmup_steps
    if not 0 <= warmup < max(total_steps, 1):
        raise ConfigError(f"warmup_steps = {warmup} must be at least 0 and less than the total of {total_steps} steps")
    decay_steps = total_steps - warmup
    match options.schedule:
        case "constant":
            if end:
                raise ConfigError(f"end_learning_rate = {end} has no effect on schedule 'constant'; leave it at 0")
            decay = optax.constant_schedule(peak)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak if peak else 0.0)
        case "linear":
            decay = optax.linear_schedule(peak, end, decay_steps)
        case unknown:
            raise ConfigError(f"schedule = {unknown!r}: choose 'constant', 'cosine' or 'linear'")
    if warmup == 0:
        return decay
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(options: OptimizerOptions, total_steps: int, modules: Iterable[str]) -> Optimizer:
    """The optimiser over `modules` (the top-level keys of the parameters); a misspelt module is refused."""
    modules = tuple(modules)
    _check_modules("freeze", options.freeze, modules)
    _check_modules("learning_rates", options.learning_rates, modules)
    if both := set(options.freeze) & set(options.learning_rates):
        raise ConfigError(
            f"learning_rates names {sorted(both)}, which freeze excludes from training; drop one of the two"
        )
    if set(options.freeze) == set(modules):
        raise ConfigError(f"freeze = {tuple(options.freeze)} leaves nothing to train; leave out one of {modules}")
    schedule = make_schedule(options, total_steps)
    stages = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm is not None else []
    stages.append(_direction(options))
    if options.weight_decay:
        stages.append(optax.add_decayed_weights(options.weight_decay, mask=decay_mask))
    if options.learning_rates:
        stages.append(_scale_modules(options.learning_rates))
    stages.append(optax.scale_by_learning_rate(schedule))
    return Optimizer(optax.chain(*stages), schedule, frozenset(options.freeze))


def _direction(options: OptimizerOptions) -> optax.GradientTransformation:
    """Gradients to updates, before decay and learning rate."""
    match options.moment_dtype:
        case "float32":
            adam = optax.scale_by_adam(options.b1, options.b2, options.eps)
        case "bfloat16":
            adam = scale_by_adam_in_bfloat16(options.b1, options.b2, options.eps)
        case unknown:
            raise ConfigError(f"moment_dtype = {unknown!r}: choose 'float32' or 'bfloat16'")
    match options.rule:
        case "adamw":
            return adam
        case "muon":
            muon = optax.chain(
                scale_by_muon(mu_dtype=options.moment_dtype, weight_dimension_numbers=_matrices),
                optax.stateless(_as_large_as_adam),
            )
            return optax.partition({"muon": muon, "adam": adam}, _rules)
        case unknown:
            raise ConfigError(f"rule = {unknown!r}: choose 'adamw' or 'muon'")


def _rules(params: Any) -> Any:
    """Tree of the names of rules: Muon for kernels, Adam for embeddings, norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if _names(path)[-1] == "kernel" else "adam", params)


def _matrices(kernels: Any) -> Any:
    """Tree of MuonDimensionNumbers: how each kernel is a matrix, or a stack of them."""

    def axes(path, _):
        inputs, outputs = _AXES.get(_names(path)[-2], (1, 1))
        return MuonDimensionNumbers(tuple(range(-inputs - outputs, -outputs)), tuple(range(-outputs, 0)))

    return jax.tree_util.tree_map_with_path(axes, kernels)


def _as_large_as_adam(updates: Any, _) -> Any:
    """Orthogonal matrices brought to a root mean square of 0.2."""

    def scaled(path, update):
        inputs, outputs = _AXES.get(_names(path)[-2], (1, 1))
        sizes = math.prod(update.shape[-inputs - outputs : -outputs]), math.prod(update.shape[-outputs:])
        return update * (0.2 * math.sqrt(max(sizes)))

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(key, "key", key)) for key in path]


def decay_mask(params: Any) -> Any:
    """Tree of bool: True for matrices and embeddings, False for anything named a norm, scale or bias.

    Decided by name, not by rank: parameters stacked over layers give a norm two axes.
    """

    def decays(path, _):
        return not any(_UNDECAYED.search(name) for name in _names(path))

    return jax.tree_util.tree_map_with_path(decays, params)


def _scale_modules(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiply the updates of each named module."""

    def update(updates, _):
        return {name: optax.tree.scale(multipliers.get(name, 1.0), tree) for name, tree in updates.items()}

    return optax.stateless(update)


def _is_of_schedule(path: tuple[Any, ...], _) -> bool:
    """Whether a leaf of the optimiser's state belongs to the schedule; the moments count updates, too."""
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"


def _check_modules(field_name: str, names: Iterable[str], modules: tuple[str, ...]) -> None:
    if unknown := sorted(set(names) - set(modules)):
        raise ConfigError(
            f"{field_name} names {unknown[0]!r}, which is no module of the model; choose from {list(modules)}"
        )


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
