"""Tiles of tokens: what they compute, and what they send between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toy_model import needs_eight

from jvlmm.models.tiles import over_tiles
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules

AXES = {"up": ("embed", "mlp"), "down": ("mlp", "embed")}
WEIGHTS = {
    name: jax.random.normal(jax.random.key(i), shape)
    for i, (name, shape) in enumerate({"up": (8, 24), "down": (24, 8)}.items())
}
X = jax.random.normal(jax.random.key(2), (8, 4, 8))


def apply(weights, x):
    return jnp.tanh(x @ weights["up"]) @ weights["down"]


def loss(weights, x, tile, rules=None):
    return jnp.sum(over_tiles(apply, weights, AXES, x, tile, rules, jnp.float32) ** 2)


@pytest.mark.parametrize("tile", [4, 32, 5, 64], ids=["tiles", "one tile", "no divisor", "more than there are"])
def test_tiles_compute_what_the_whole_does(tile):
    found = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(WEIGHTS, X, tile)
    expected = jax.value_and_grad(lambda weights, x: jnp.sum(apply(weights, x) ** 2), (0, 1))(WEIGHTS, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@needs_eight
@pytest.mark.parametrize("tile", [1, 4], ids=["four tiles", "one tile"])
def test_weights_are_gathered_and_gradients_scattered_once_for_all_tiles(tile):
    mesh, rules = make_mesh(MeshOptions(data=1, fsdp=8), jax.devices()[:8]), ShardingRules()
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    weights = {"up": place(WEIGHTS["up"], "fsdp"), "down": place(WEIGHTS["down"], None, "fsdp")}
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(lambda weights, x: loss(weights, x, tile, rules)))
        text = step.lower(weights, place(X, "fsdp")).as_text()
        gradients = step(weights, place(X, "fsdp"))
    assert len(re.findall("stablehlo.all_gather", text)) == len(re.findall("stablehlo.reduce_scatter", text)) == 2
    assert gradients["down"].sharding.spec == PartitionSpec(None, "fsdp")
    expected = jax.grad(lambda weights: jnp.sum(apply(weights, X) ** 2))(WEIGHTS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, expected)
