"""What the vision tower and the decoder share: projections, RMSNorm, rotary embedding, gated MLP."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.config import ModelConfig
from jvlmm.models.remat import product


def linear(
    config: ModelConfig,
    features,
    names: tuple[str, ...],
    bias: bool,
    axis=-1,
    variance: float = 1.0,
    name: str | None = None,
):
    """A `Projection` whose kernel is [*inputs, *features], with the logical axis `names` of that kernel.

    Args:
        features: an int, or several to project onto (heads, head_dim).
        axis: the input axes contracted; (-2, -1) contracts heads and head_dim.
        variance: of the outputs of a new kernel, for inputs of variance 1.
    """
    init = nn.initializers.variance_scaling(variance, "fan_in", "normal")
    inputs = 1 if isinstance(axis, int) else len(axis)
    return Projection(
        features,
        axis=axis,
        name=name,
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        dot_general=flat_product if config.flatten_tokens else jax.lax.dot_general,
        kernel_init=nn.with_logical_partitioning(init, names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, names[inputs:]),
    )


class Projection(nn.DenseGeneral):
    """x · kernel + bias; where its parameters hold an adapter, also x · lora_a · lora_b (Hu et al., arXiv:2106.09685).

    `lora_a` is [*inputs, rank] and `lora_b` [rank, *features]. Neither is made by `init`: see `training.lora`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., *inputs] to [..., *features]."""
        outputs = super().__call__(x)
        if not self.has_variable("params", "lora_a"):
            return product(outputs)
        down, up = (self.get_variable("params", name).astype(outputs.dtype) for name in ("lora_a", "lora_b"))
        inputs = down.ndim - 1
        axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
        low = product(self.dot_general(x.astype(outputs.dtype), down, (axes, ((), ()))))
        return product(outputs + self.dot_general(low, up, (((low.ndim - 1,), (0,)), ((), ()))))


def flat_product(x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None, preferred_element_type=None):
    """`lax.dot_general` of [..., inputs] with [inputs, outputs] as one product of two matrices.

    The gradient of the kernel then contracts one axis of tokens. Over several axes XLA's CPU back end first copies
    both operands into another order, which halves the speed of a training step.
    """
    (contracted, _), _ = dimension_numbers
    leading, trailing = x.shape[: -len(contracted)], kernel.shape[len(contracted) :]
    inputs = math.prod(x.shape[-len(contracted) :])
    product = jax.lax.dot(
        x.reshape(-1, inputs),
        kernel.reshape(inputs, -1),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return product.reshape(*leading, *trailing)


class RMSNorm(nn.Module):
    """Root mean square normalisation with float32 statistics (Zhang and Sennrich 2019)."""

    eps: float
    name_of_axis: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] to `dtype` [..., D]."""
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.name_of_axis,))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return scale.astype(self.dtype) * x.astype(self.dtype)


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    config: ModelConfig
    intermediate_size: int
    names: tuple[str, str]  # logical axes of the input and of the hidden layer
    bias: bool
    variance: float = 1.0  # of the outputs of a new module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] to [..., D]."""
        inner, outer = self.names[::-1], self.names
        gate = linear(self.config, self.intermediate_size, outer, self.bias, name="gate_proj")(x)
        up = linear(self.config, self.intermediate_size, outer, self.bias, name="up_proj")(x)
        down = linear(self.config, x.shape[-1], inner, self.bias, variance=self.variance, name="down_proj")
        return down(jax.checkpoint(_gated)(gate, up))  # cheaper to compute again than to keep for the backward pass

    def axes(self, params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[str | None, ...]]]:
        """Logical axes of its parameters, adapters among them, as a tree like theirs."""

        def of_projection(name):
            inputs, outputs = self.names[::-1] if name == "down_proj" else self.names
            own = {"kernel": (inputs, outputs), "bias": (outputs,)}
            return own | {"lora_a": (inputs, None), "lora_b": (None, outputs)}

        return {name: {leaf: of_projection(name)[leaf] for leaf in params[name]} for name in params}


def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nn.silu(gate) * up


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """float32 [dim / 2]: theta^(-2i / dim), as in RoFormer (Su et al. 2021)."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + d/2}) in float32.

    Args:
        x: [..., d].
        cos, sin: float32, broadcastable to [..., d / 2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
