"""The KL estimators against their definitions and the KL they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.objectives.kl import rollout_kl, token_kl


def test_hand_worked():
    # policy 1/2, reference 1/4: r = 1/2, log r = −0.6931472
    policy, reference = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    np.testing.assert_allclose(token_kl(policy, reference, "k1"), [0.6931472], rtol=1e-6)
    np.testing.assert_allclose(token_kl(policy, reference, "k2"), [0.2402265], rtol=1e-6)  # 0.4804530 / 2
    np.testing.assert_allclose(token_kl(policy, reference, "k3"), [0.1931472], rtol=1e-6)  # 0.5 + 0.6931472 − 1


def test_k1_and_k3_have_the_kl_as_their_mean_and_k2_its_gradient():
    logits, reference = jnp.array([1.0, 0.0, -2.0]), jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.0]))

    def mean(logits, estimator):
        log_probs = jax.nn.log_softmax(logits)
        return (jax.lax.stop_gradient(jnp.exp(log_probs)) * token_kl(log_probs, reference, estimator)).sum()

    def kl(logits):
        log_probs = jax.nn.log_softmax(logits)
        return (jnp.exp(log_probs) * (log_probs - reference)).sum()

    np.testing.assert_allclose(mean(logits, "k1"), kl(logits), rtol=1e-5)
    np.testing.assert_allclose(mean(logits, "k3"), kl(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(mean)(logits, "k2"), jax.grad(kl)(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(mean)(logits, "k1"), 0, atol=1e-6)


def test_k3_stays_finite():
    far = token_kl(jnp.array([-100.0, 0.0]), jnp.array([0.0, -100.0]), "k3")
    np.testing.assert_allclose(far, [np.exp(10) - 11, np.exp(-10) + 9], rtol=1e-6)


def test_sum_of_a_rollout_has_no_gradient_and_no_masked_tokens():
    log_probs, mask = jnp.array([[[-1.0, -2.0, jnp.nan]]]), jnp.array([[[True, True, False]]])
    reference = jnp.array([[[-1.5, -1.0, -jnp.inf]]])
    np.testing.assert_allclose(rollout_kl(log_probs, reference, mask, "k1"), [[0.5 - 1.0]])
    assert not jax.grad(lambda x: rollout_kl(x, reference, mask, "k1").sum())(log_probs).any()
    with pytest.raises(ValueError, match="no KL estimator 'k4'"):
        rollout_kl(log_probs, reference, mask, "k4")
