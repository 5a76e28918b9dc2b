"""Detection against a hand-worked case, and what perfect outputs cost."""

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.objectives.detection import detection_f1, detection_loss, num_outputs


def _targets():
    """One place, two classes, two frames; an object of the first class moves by a tenth to the right."""
    targets = np.zeros((1, 2, 2 + 5), np.float32)
    targets[0, 0] = [1, 0, 1, 0.1, 0.2, 0.3, 0.4]
    targets[0, 1] = [1, 0, 1, 0.2, 0.2, 0.4, 0.4]
    return targets


def test_hand_worked():
    total, count = detection_loss(np.zeros((1, num_outputs(2, 2)), np.float32), _targets())
    boxes = 1.25 * (1.0 + 1.2) / 2
    motion = (12 * 0.1) ** 2
    np.testing.assert_allclose(total, 4 * np.log(2) + boxes + motion, rtol=1e-6)
    assert count == 1


def test_perfect_outputs_cost_nothing_and_find_everything():
    targets = _targets()
    logits = np.where(targets[..., :2] > 0, 30, -30).reshape(1, 4)
    outputs = np.concatenate([logits, targets[..., -4:].reshape(1, 8), [[1.2, 0]]], axis=-1).astype(np.float32)
    total, _ = detection_loss(outputs, targets)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    assert detection_f1(outputs, targets) == 1
    assert detection_f1(-outputs, targets) == 0


def test_a_class_is_claimed_from_a_probability_of_one_half():
    outputs = np.zeros((1, num_outputs(2, 2)), np.float32)
    outputs[0, :4] = [0.1, -0.1, 0.1, 0.1]
    np.testing.assert_allclose(detection_f1(outputs, _targets()), 2 * 2 / (3 + 2))


def test_where_nothing_is_only_presence_has_a_gradient():
    outputs, targets = jnp.ones((3, num_outputs(2, 2))), jnp.zeros((3, 2, 2 + 5))
    gradient = jax.grad(lambda o: detection_loss(o, targets)[0])(outputs)
    assert (gradient[:, :4] > 0).all() and not gradient[:, 4:].any()
