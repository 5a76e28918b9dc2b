"""Schedules, decay, learning rates per module and frozen modules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy

from jvlmm.errors import ConfigError
from jvlmm.training.optimizer import OptimizerOptions, decay_mask, make_optimizer, make_schedule
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step


def rates(total, **options):
    schedule = make_schedule(OptimizerOptions(learning_rate=1.0, **options), total)
    return [round(float(schedule(step)), 4) for step in range(total)]


def test_schedules():
    assert rates(4, schedule="constant") == [1, 1, 1, 1]
    assert rates(6, schedule="linear", warmup_steps=2, end_learning_rate=0.2) == [0.5, 1, 1, 0.8, 0.6, 0.4]
    expected = [0.25, 0.5, 0.75, 1, *(0.1 + 0.9 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4))]
    assert rates(8, schedule="cosine", warmup_steps=4, end_learning_rate=0.1) == [round(float(e), 4) for e in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("visoin",)}, r"freeze names 'visoin', .*choose from \['vision', 'merger', 'decoder'\]"),
        ({"learning_rates": {"head": 1.0}}, "learning_rates names 'head'"),
        ({"learning_rates": {"vision": 1.0}, "freeze": ("vision",)}, "freeze excludes"),
        ({"freeze": toy.MODULES}, "nothing to train"),
        ({"warmup_steps": 10}, "warmup_steps = 10"),
        ({"schedule": "constant", "end_learning_rate": 0.1}, "no effect"),
        ({"moment_dtype": "float16"}, "choose 'float32' or 'bfloat16'"),
        ({"rule": "adam"}, "choose 'adamw' or 'muon'"),
        ({"schedule": "cosin"}, "choose 'constant', 'cosine' or 'linear'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerOptions(**options), 10, toy.MODULES)


def one_update(gradients=None, **options):
    """Change of the parameters by one update."""
    optimizer = make_optimizer(OptimizerOptions(learning_rate=0.01, clip_norm=None, **options), 10, toy.MODULES)
    params = toy.init_params()
    gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
    updated, _ = optimizer.update(gradients, optimizer.init(params), params)
    return jax.tree.map(jnp.subtract, updated, params)


def test_matches_optax_adamw():
    params = toy.init_params()
    reference = optax.adamw(0.01, weight_decay=0.3, mask=decay_mask)
    gradients = jax.tree.map(lambda p: jnp.sin(7 * p), params)
    expected, _ = reference.update(gradients, reference.init(params), params)
    actual = one_update(gradients, schedule="constant", weight_decay=0.3)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-7), actual, expected)


def test_only_matrices_decay():
    change = one_update(jax.tree.map(jnp.zeros_like, toy.init_params()), weight_decay=0.5)
    for name, before in toy.init_params().items():
        np.testing.assert_allclose(change[name]["mlp"]["kernel"], -0.005 * before["mlp"]["kernel"], atol=1e-7)
        assert not np.any(change[name]["mlp"]["bias"])
        assert not np.any(change[name]["input_norm"]["scale"])


def test_decay_goes_by_name_where_layers_are_stacked():
    stacked = {"blocks": {"ln_q": {"weight": 0}, "q": {"kernel": 0, "bias": 0}, "norm1": {"scale": 0}}, "embedding": 0}
    assert decay_mask(stacked) == {
        "blocks": {"ln_q": {"weight": False}, "q": {"kernel": True, "bias": False}, "norm1": {"scale": False}},
        "embedding": True,
    }


def test_learning_rates_scale_each_module():
    plain, scaled = one_update(), one_update(learning_rates={"vision": 0.1, "merger": 3.0})
    for name, factor in {"vision": 0.1, "merger": 3.0, "decoder": 1.0}.items():
        jax.tree.map(
            lambda s, p, f=factor: np.testing.assert_allclose(s, f * p, rtol=1e-3, atol=1e-7), scaled[name], plain[name]
        )


def test_moments_are_float32_whatever_the_parameters_are():
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1), 10, toy.MODULES)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), toy.init_params())
    state, _ = make_train_step(toy.loss_fn, optimizer)(create_state(params, optimizer), [next(toy.ToyLoader())[0]])
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"float32"}


@jax.custom_vjp
def _refuse_gradient(x):
    return x


def _refuse(*_):
    raise AssertionError("a gradient of a frozen module was computed")


_refuse_gradient.defvjp(lambda x: (x, None), _refuse)


def test_frozen_module_keeps_its_bits_and_costs_nothing():
    def guarded(params, batch):
        return toy.loss_fn({**params, "vision": jax.tree.map(_refuse_gradient, params["vision"])}, batch)

    optimizer = make_optimizer(OptimizerOptions(0.1, weight_decay=0.1, freeze=("vision",)), 10, toy.MODULES)
    state = create_state(toy.init_params(), optimizer)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]]
    assert any("decoder" in path for path in paths)
    assert not any("vision" in path for path in paths)
    step, loader = make_train_step(guarded, optimizer), toy.ToyLoader()
    for _ in range(3):
        state, _ = step(state, [next(loader)[0]])
    before = toy.init_params()
    jax.tree.map(np.testing.assert_array_equal, state.params["vision"], before["vision"])
    for name in ("merger", "decoder"):
        assert np.any(state.params[name]["mlp"]["kernel"] != before[name]["mlp"]["kernel"])
    with pytest.raises(AssertionError, match="gradient of a frozen module"):
        trainable = make_optimizer(OptimizerOptions(), 10, toy.MODULES)
        make_train_step(guarded, trainable)(create_state(toy.init_params(), trainable), [next(loader)[0]])


def muon_update(gradients):
    """What one update of Muon at a rate of 1 takes away, in the dtype float32."""
    options = OptimizerOptions(learning_rate=1.0, rule="muon", schedule="constant", clip_norm=None)
    optimizer = make_optimizer(options, 10, tuple(gradients))
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    return optimizer.update(gradients, optimizer.init(zeros), zeros)[0]


def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "gate_proj": (12, 30),
        "q_proj": (12, 2, 5),
        "qkv": (12, 3, 2, 5),
        "o_proj": (2, 5, 12),
        "proj": (2, 6, 8),
    }
    layers = {name: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)} for name, s in shapes.items()}
    layers["q_proj"]["bias"] = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    update = muon_update({"decoder": layers, "embed": {"embedding": jnp.ones((7, 3))}})
    inputs = {"o_proj": 2, "proj": 2}
    for name, shape in shapes.items():
        taken = np.asarray(update["decoder"][name]["kernel"])
        rows = int(np.prod(shape[: inputs.get(name, 1)]))
        values = np.linalg.svd(taken.reshape(rows, -1), compute_uv=False) / (0.2 * max(taken.size // rows, rows) ** 0.5)
        assert values.min() > 0.6 and values.max() < 1.3, name  # five Newton-Schulz steps bring them near 1
    np.testing.assert_allclose(update["decoder"]["q_proj"]["bias"], -np.sign(layers["q_proj"]["bias"]), atol=1e-4)
    np.testing.assert_allclose(update["embed"]["embedding"], -1, atol=1e-4)


def test_muon_treats_stacked_layers_one_by_one():
    rng = np.random.default_rng(1)
    kernels = jnp.asarray(rng.normal(size=(3, 6, 2, 4)), jnp.float32)
    stacked = muon_update({"decoder": {"q_proj": {"kernel": kernels}}})["decoder"]["q_proj"]["kernel"]
    for layer, kernel in zip(stacked, kernels, strict=True):
        alone = muon_update({"decoder": {"q_proj": {"kernel": kernel}}})["decoder"]["q_proj"]["kernel"]
        np.testing.assert_allclose(layer, alone, atol=1e-5)
