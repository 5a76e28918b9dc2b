"""LoRA (Hu et al., arXiv:2106.09685): frozen kernels, each with a trained product of two thin matrices beside it.

Adapters are a tree beside the parameters, `{module: {…: {"lora_a": [*inputs, r], "lora_b": [r, *outputs]}}}`, with the
leading layer axis of the kernel where layers are stacked. The layer W then computes x W + (alpha / r) x A B.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.names import Tensor, checkpoint_tensors
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.step import LossFn

ADAPTERS = "adapters"  # the module of the training state that holds them, beside those of the model


@dataclass(frozen=True)
class LoraOptions:
    """Which projections get an adapter, and how strong it is.

    `targets` are patterns of paths such as `decoder/layers_3/self_attn/q_proj`, `vision/blocks_0/attn/qkv` or
    `merger/fc1`; `*` matches any characters, `/` too.
    """

    rank: int = 16
    alpha: float = 32.0  # the product of the two matrices is multiplied by alpha / rank
    targets: tuple[str, ...] = ("decoder/layers_*/*_proj",)  # attention and MLP of every layer

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"lora.rank = {self.rank} must be at least 1")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"lora.alpha = {self.alpha} must be a positive number")
        if not self.targets:
            raise ConfigError("lora.targets is empty; name projections, for example decoder/layers_*/self_attn/q_proj")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


def adapted_modules(config: ModelConfig, options: LoraOptions) -> tuple[str, ...]:
    """The top-level modules of the parameters in which there are adapters."""
    return tuple(dict.fromkeys(kernel.path[0] for kernel in _adapted_kernels(config, options)))


def init_adapters(config: ModelConfig, options: LoraOptions, key: jax.Array) -> dict[str, Any]:
    """float32 adapters that change nothing yet: A uniform in ±1 / √inputs, as in the reference code, and B zero.

    The same values whether layers are stacked or not. Raises ConfigError for a target that matches no projection.
    """
    adapters: dict[tuple[str, ...], jax.Array] = {}
    for kernel in _adapted_kernels(config, options):
        bound = math.prod(kernel.inputs) ** -0.5
        draw = partial(jax.random.uniform, shape=(*kernel.inputs, options.rank), minval=-bound, maxval=bound)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(kernel.numbers))
        layers = keys.shape if kernel.stacked else ()
        adapters[*kernel.path, "lora_a"] = jax.vmap(draw)(keys) if kernel.stacked else draw(keys[0])
        adapters[*kernel.path, "lora_b"] = jnp.zeros((*layers, options.rank, *kernel.outputs))
    return unflatten_dict(adapters)


def adapter_axes(config: ModelConfig, options: LoraOptions) -> dict[str, Any]:
    """Tuples of logical axis names like the tree of `init_adapters`: those of the kernel, and None for the rank."""
    names = flatten_dict(abstract_params(config)[1])
    axes: dict[tuple[str, ...], tuple[str | None, ...]] = {}
    for kernel in _adapted_kernels(config, options):
        of_kernel = names[*kernel.path, "kernel"]
        layers, of_kernel = of_kernel[: kernel.stacked], of_kernel[kernel.stacked :]
        axes[*kernel.path, "lora_a"] = (*layers, *of_kernel[: len(kernel.inputs)], None)
        axes[*kernel.path, "lora_b"] = (*layers, None, *of_kernel[len(kernel.inputs) :])
    return unflatten_dict(axes)


def with_adapters(params: Mapping[str, Any], adapters: Mapping[str, Any], options: LoraOptions) -> dict[str, Any]:
    """Parameters whose projections add their adapters to what they compute; see `models.layers.Projection`.

    The low-rank products run beside the kernel's, so that neither a merged kernel nor a gradient of its size exists.
    """
    scaled = {path: x * options.scale if path[-1] == "lora_b" else x for path, x in flatten_dict(adapters).items()}
    return unflatten_dict(flatten_dict(params) | scaled)


def merge_adapters(
    params: Mapping[str, Any], adapters: Mapping[str, Any], options: LoraOptions, dtype: str
) -> dict[str, Any]:
    """Parameters with W + (alpha / r) A B in place of W; the rest as it is.

    Computed in float32; kept in the wider of the types of W and `dtype`, that of an export.
    """
    merged, adapters = flatten_dict(params), flatten_dict(adapters)
    for *module, name in adapters:
        if name == "lora_a":
            a, b, kernel = adapters[*module, "lora_a"], adapters[*module, "lora_b"], merged[*module, "kernel"]
            product = partial(jnp.tensordot, axes=1, precision="highest")
            if a.ndim + b.ndim - 2 > kernel.ndim:  # both have the axis of layers
                product = jax.vmap(product)
            total = kernel.astype(jnp.float32) + options.scale * product(a, b)
            merged[*module, "kernel"] = total.astype(jnp.promote_types(kernel.dtype, dtype))
    return unflatten_dict(merged)


def adapted_loss(loss_fn: LossFn, options: LoraOptions) -> LossFn:
    """`loss_fn` of parameters that have a module ADAPTERS beside those of the model."""

    def loss(params: Any, batch: Any):
        base = {name: module for name, module in params.items() if name != ADAPTERS}
        return loss_fn(with_adapters(base, params[ADAPTERS], options), batch)

    return loss


def adapter_optimizer(options: OptimizerOptions, modules: tuple[str, ...]) -> OptimizerOptions:
    """`options` for adapters alone: the `modules` of the model are frozen.

    Raises ConfigError for options that could not have an effect then.
    """
    for name in ("freeze", "learning_rates"):
        if getattr(options, name):
            raise ConfigError(
                f"optimizer.{name} has no effect with lora, whose targets say what is trained; leave it empty"
            )
    if options.rule != "adamw":
        raise ConfigError(f"optimizer.rule = {options.rule!r} updates kernels, which lora freezes; choose 'adamw'")
    return replace(options, freeze=modules)


@dataclass(frozen=True)
class _AdaptedKernel:
    path: tuple[str, ...]  # of the projection, in the parameters
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stacked: bool
    numbers: tuple[int, ...]  # of its layers among all tensors of the model, in either layout


def _adapted_kernels(config: ModelConfig, options: LoraOptions) -> Iterator[_AdaptedKernel]:
    named = list(_named_kernels(config))
    for target in options.targets:
        if not any(fnmatchcase(name, target) for name, _, _ in named):
            raise _no_match(target, [name for name, _, _ in named])
    rows: dict[str, list[tuple[bool, int, Tensor]]] = {}
    for name, number, tensor in named:
        matched = any(fnmatchcase(name, target) for target in options.targets)
        rows.setdefault(tensor.path, []).append((matched, number, tensor))
    for path, layers in rows.items():
        matched, numbers, (tensor, *_) = zip(*layers, strict=True)
        if any(matched) and not all(matched):
            raise ConfigError(
                f"lora.targets = {options.targets} take some layers of {path} and leave others, but here layers are "
                "scanned as one; name all of them with layers_* or blocks_*"
            )
        if all(matched):
            module = tuple(path.split(".")[:-1])
            inputs, outputs = tensor.shape[: tensor.inputs], tensor.shape[tensor.inputs :]
            yield _AdaptedKernel(module, inputs, outputs, tensor.row is not None, numbers)


def _named_kernels(config: ModelConfig) -> Iterator[tuple[str, int, Tensor]]:
    """(path of the projection as in unrolled layers, number, tensor) of every kernel, or layer of a stacked one."""
    unrolled = checkpoint_tensors(replace(config, scan_layers=False))
    for number, (named, tensor) in enumerate(zip(unrolled, checkpoint_tensors(config), strict=True)):
        if tensor.inputs:
            yield named.path.rpartition(".")[0].replace(".", "/"), number, tensor


def _no_match(target: str, names: list[str]) -> ConfigError:
    exist = list(dict.fromkeys(re.sub(r"_\d+/", "_*/", name) for name in names))
    near = difflib.get_close_matches(target, exist, n=4, cutoff=0.0)
    return ConfigError(f"lora.targets: {target!r} matches no projection of the model; there are {', '.join(near)}, …")
