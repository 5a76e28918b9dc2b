"""Detection against a hand-worked case, and what perfect outputs cost."""

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.objectives.detection import detection_f1, detection_loss, num_outputs


def _targets():
    """One cell, two classes, two frames; the first class moves by a tenth to the right, the second is absent."""
    targets = np.zeros((1, 2, 2, 5), np.float32)
    targets[0, 0, 0] = [1, 0.1, 0.2, 0.3, 0.4]
    targets[0, 0, 1] = [1, 0.2, 0.2, 0.4, 0.4]
    return targets


def test_hand_worked():
    outputs = np.zeros((1, 2, num_outputs(2)), np.float32)
    total, count = detection_loss(outputs, _targets())
    boxes = 1.25 * (1.0 + 1.2) / 2
    motion = 14 * 0.1 / 2
    np.testing.assert_allclose(total, 4 * np.log(2) + boxes + motion, rtol=1e-6)
    assert count == 1


def test_perfect_outputs_cost_nothing_and_find_everything():
    targets = _targets()
    told = targets.copy()
    told[..., 0] = np.where(targets[..., 0] > 0, 30, -30)
    motion = np.array([[[1.4, 0], [9, 9]]], np.float32)  # of an absent class: anything
    outputs = np.concatenate([told.reshape(1, 2, 10), motion], axis=-1)
    total, _ = detection_loss(outputs, targets)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    assert detection_f1(outputs, targets) == 1
    assert detection_f1(-outputs, targets) == 0


def test_cells_without_shapes_have_finite_gradients():
    outputs, targets = jnp.ones((3, 2, num_outputs(2))), jnp.zeros((3, 2, 2, 5))
    gradient = jax.grad(lambda o: detection_loss(o, targets)[0])(outputs)
    assert jnp.isfinite(gradient).all() and not gradient[..., -2:].any()
