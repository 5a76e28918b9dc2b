"""Tiles of tokens and parts of hidden units: what they compute, and what they send between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toy_model import needs_eight

from jvlmm.models.tiles import add_in_tiles
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules

AXES = {"up": ("embed", "mlp"), "down": ("mlp", "embed"), "scale": ("embed",)}
SHAPES = {"up": (8, 24), "down": (24, 8), "scale": (8,)}
WEIGHTS = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(SHAPES.items())}
X = jax.random.normal(jax.random.key(3), (8, 4, 8))


def update(weights, x):
    return jnp.tanh((x * weights["scale"]) @ weights["up"]) @ weights["down"]


def loss(weights, x, tile, parts=1, rules=None):
    return jnp.sum(add_in_tiles(update, weights, AXES, x, tile, parts, rules) ** 2)


def expected_loss(weights, x):
    return jnp.sum((x + update(weights, x)) ** 2)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize(
    ("tile", "parts"), [(4, 1), (32, 3), (5, 5), (8, 2)], ids=["tiles", "parts", "no divisors", "both"]
)
def test_tiles_and_parts_compute_what_the_whole_does(tile, parts):
    found = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=(2, 3))(WEIGHTS, X, tile, parts)
    assert_close(found, jax.value_and_grad(expected_loss, (0, 1))(WEIGHTS, X))


def test_weights_without_a_gradient_cost_no_products():
    def products(names):
        trained = {name: WEIGHTS[name] for name in names}
        step = jax.grad(lambda trained: loss({**WEIGHTS, **trained}, X, 4))
        return str(jax.make_jaxpr(step)(trained)).count("dot_general")

    assert products(("scale",)) == products(("scale", "up", "down")) - 2


@needs_eight
@pytest.mark.parametrize("tile", [1, 4], ids=["four tiles", "one tile"])
@pytest.mark.parametrize("parts", [1, 2])
def test_weights_are_gathered_and_gradients_scattered_once_for_all_tiles(tile, parts):
    mesh, rules = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2), jax.devices()[:8]), ShardingRules()
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    weights = {
        "up": place(WEIGHTS["up"], "fsdp", "tensor"),
        "down": place(WEIGHTS["down"], "tensor", "fsdp"),
        "scale": place(WEIGHTS["scale"], "fsdp"),
    }
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(lambda weights, x: loss(weights, x, tile, parts, rules)))
        text = step.lower(weights, place(X, "fsdp")).as_text()
        gradients = step(weights, place(X, "fsdp"))
    forward_and_backward = 2
    assert len(re.findall("stablehlo.all_gather", text)) == forward_and_backward * len(SHAPES)
    assert len(re.findall("stablehlo.reduce_scatter", text)) == len(SHAPES)  # in a loop over parts
    assert gradients["down"].sharding.spec == PartitionSpec("tensor", "fsdp")
    assert_close(gradients, jax.grad(expected_loss)(WEIGHTS, X))
