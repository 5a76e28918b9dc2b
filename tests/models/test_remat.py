"""What each policy keeps of a layer for the backward pass, where offloaded activations lie, and what is refused."""

import dataclasses
from collections import Counter
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
from toy_model import CONFIG

from jvlmm.models import qwen2_5_vl as model
from jvlmm.models.remat import Remat, rematerialise
from jvlmm.training.lora import LoraOptions, init_adapters, with_adapters

B, L, RANK = 2, 24, 3
LORA = LoraOptions(rank=RANK)
QUERY, KEY, UNITS, STREAM = (B, L, 4, 16), (B, L, 2, 16), (B, L, 80), (B, L, 64)
MIXED, STATISTIC = (B, 2, 2 * L, 16), (B, 2, 2 * L, 1)  # grouped by key head
PRODUCTS = {QUERY: 1, KEY: 2, UNITS: 2}  # and the result of the output projection, a STREAM
ATTENTION = {MIXED: 1, STATISTIC: 2}


def decode(config, params, adapters=None):
    params = params if adapters is None else with_adapters(params, adapters, LORA)
    places = jnp.zeros((B, 3, L), jnp.int32)
    return model.forward(params, config, places[:, 0], places, jnp.ones((B, L), jnp.int32))


def kept_of_a_layer(remat, lora=False):
    """How many arrays of which shape a deeper decoder keeps beyond those of one a layer less deep."""
    counts = []
    for depth in (2, 3):
        config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_layers=depth), remat=remat)
        trained = shapes = model.abstract_params(config)[0]
        run = partial(decode, config)
        if lora:
            trained = jax.eval_shape(partial(init_adapters, config, LORA), jax.random.key(0))
            run = lambda adapters, run=run, shapes=shapes: run(jax.tree.map(jnp.zeros_like, shapes), adapters)  # noqa: E731
        residuals = jax.eval_shape(lambda x, run=run: jax.vjp(run, x)[1], trained)
        counts.append(Counter(x.shape for x in jax.tree.leaves(residuals) if {L, 2 * L} & set(x.shape)))
    return dict(counts[1] - counts[0])


@pytest.mark.parametrize(
    ("remat", "expected"),
    [
        ("minimal", {**PRODUCTS, **ATTENTION, STREAM: 2}),
        ("dots", {**PRODUCTS, STREAM: 2}),
        ("full", {STREAM: 1}),
        ("offload", {STREAM: 1}),
    ],
)
def test_a_policy_keeps_what_it_says(remat, expected):
    assert kept_of_a_layer(remat) == expected
    none = kept_of_a_layer("none")
    assert sum(none.values()) > 2 * sum(expected.values())


@pytest.mark.parametrize("remat", ["minimal", "dots"])
def test_an_adapter_adds_its_thin_activations_alone(remat):
    expected = kept_of_a_layer(remat) | {(B, L, RANK): 7}
    assert kept_of_a_layer(remat, lora=True) == expected


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", get_args(Remat))
def test_offloaded_inputs_alone_lie_in_the_memory_of_the_host(remat, scan_layers):
    config = dataclasses.replace(CONFIG, remat=remat, scan_layers=scan_layers)
    shapes = model.abstract_params(config)[0]
    traced = jax.jit(jax.grad(lambda params: jnp.sum(decode(config, params)))).trace(shapes)
    assert ("<host>" in str(traced.jaxpr)) == (remat == "offload")


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat = 'dot': choose 'none', 'minimal', 'dots', 'full' or 'offload'"):
        rematerialise(model.forward, "dot", scanned=False)
