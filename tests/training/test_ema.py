"""The moving average of a student, and why it is kept in float32."""

import jax.numpy as jnp
import numpy as np

from jvlmm.training.ema import ema_update


def test_it_moves_by_its_share():
    teacher = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(0.0)}}
    student = {"a": jnp.array([2.0, 2.0], jnp.bfloat16), "b": {"c": jnp.array(-4.0, jnp.bfloat16)}}
    found = ema_update(teacher, student, 0.75)
    np.testing.assert_array_equal(found["a"], [1.25, 2.0])
    assert found["b"]["c"] == -1.0 and found["a"].dtype == jnp.float32


def test_in_bfloat16_most_of_a_drift_is_lost():
    """600 steps of a student that drifts as far as weights do at a small learning rate."""
    rng = np.random.default_rng(0)
    begin = rng.normal(0, 0.02, 4096).astype(np.float32)
    drift = (1e-6 * 600 * rng.choice([-1, 1], 4096)).astype(np.float32)
    teachers = {jnp.float32: jnp.asarray(begin), jnp.bfloat16: jnp.asarray(begin, jnp.bfloat16)}
    start = {dtype: teacher.astype(jnp.float32) for dtype, teacher in teachers.items()}
    for step in range(1, 601):
        student = jnp.asarray(begin + drift * (step / 600))
        teachers = {dtype: ema_update(teacher, student).astype(dtype) for dtype, teacher in teachers.items()}
    moved = {
        dtype: float(jnp.sum((teacher.astype(jnp.float32) - start[dtype]) * drift) / np.sum(drift**2))
        for dtype, teacher in teachers.items()
    }
    assert moved[jnp.float32] > 0.8  # behind by the 100 steps that it remembers
    assert moved[jnp.bfloat16] < 0.3 * moved[jnp.float32], moved
