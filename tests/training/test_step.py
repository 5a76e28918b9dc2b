"""Accumulation and sharding change nothing but speed."""

import jax
import numpy as np
import pytest
import toy_training as toy

from jvlmm.errors import ConfigError
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.placement import batch_placement, state_shardings
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step

OPTIMIZER = make_optimizer(OptimizerOptions(1e-2, clip_norm=None, schedule="constant"), 10, toy.MODULES)


def assert_close(a, b, rtol=2e-5, atol=2e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def run_step(microbatches, steps=1):
    state, step = create_state(toy.init_params(), OPTIMIZER), make_train_step(toy.loss_fn, OPTIMIZER)
    for _ in range(steps):
        state, metrics = step(state, microbatches)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (1, 5, 2)])
def test_microbatches_equal_the_whole_batch(sizes):
    """Rows carry different numbers of loss tokens, so a mean of means would differ."""
    batch = toy.make_batch(np.random.default_rng(3))
    batch["mask"] = np.array([0, 1, 1, 1, 0, 0, 0, 1], np.float32)
    ends = np.cumsum(sizes)
    parts = [{k: v[end - size : end] for k, v in batch.items()} for size, end in zip(sizes, ends, strict=True)]
    (whole, whole_metrics), (split, split_metrics) = run_step([batch]), run_step(parts)
    assert_close(split.opt_state, whole.opt_state)  # holds 0.1 · gradient after one update
    assert_close(split_metrics, whole_metrics)
    assert split_metrics["loss_tokens"] == 4


def test_batch_without_loss_tokens_changes_nothing():
    batch = toy.make_batch(np.random.default_rng(0))
    batch["mask"][:] = 0
    state, metrics = run_step([batch])
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, toy.init_params())


def logical_axes():
    module = {"mlp": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "input_norm": {"scale": ("embed",)}}
    return dict.fromkeys(toy.MODULES, module)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 4, 2)])
def test_sharded_equals_unsharded(shape):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    mesh, rules = make_mesh(MeshOptions(*shape)), ShardingRules()
    state = create_state(toy.init_params(), OPTIMIZER)
    shardings = state_shardings(state, named_shardings(mesh, rules, logical_axes(), state.params), mesh)
    kernel = shardings.params["decoder"]["mlp"]["kernel"]
    moments = [s for s in jax.tree.leaves(shardings.opt_state) if s == kernel]
    assert len(moments) >= 2 * len(toy.MODULES), "moments lie as their parameters do"
    step = make_train_step(toy.loss_fn, OPTIMIZER, shardings, batch_placement(mesh, rules, batch_size=8))
    batch = toy.make_batch(np.random.default_rng(5))
    state = jax.device_put(state, shardings)
    for _ in range(2):
        state, metrics = step(state, [batch])
    assert state.params["decoder"]["mlp"]["kernel"].sharding.is_equivalent_to(kernel, 2)
    assert step.compiles == 1
    expected, expected_metrics = run_step([batch], steps=2)
    assert_close(jax.device_get(state), expected, rtol=1e-4, atol=1e-6)
    assert_close(jax.device_get(metrics), expected_metrics, rtol=1e-5)


def test_batch_that_does_not_divide_is_refused():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    mesh = make_mesh(MeshOptions(4, 2, 1))
    with pytest.raises(ConfigError, match="batch_size = 12 does not divide over the 8 devices"):
        batch_placement(mesh, ShardingRules(), batch_size=12)
