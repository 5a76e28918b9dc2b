"""TW-GRPO's weights against the authors' formula, written out for a small group."""

import jax
import numpy as np

from jvlmm.objectives.token_weights import group_divergence, token_weights


def _case():
    """One prompt, two rollouts of three and two tokens, four tokens in the vocabulary."""
    logits = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    mask = np.array([[[1, 1, 1, 0], [1, 1, 0, 0]]], bool)
    return np.asarray(jax.nn.log_softmax(logits)), mask


def test_divergence_by_definition():
    log_probs, mask = _case()
    expected = np.zeros((1, 4))
    for position in range(4):
        rows = [log_probs[0, g, position] if mask[0, g, position] else np.full(4, -np.log(4)) for g in range(2)]
        for row in rows:
            d = (rows[0] + rows[1]) / 2 - row
            expected[0, position] += (np.exp(d) - d - 1).sum() / 2
    np.testing.assert_allclose(group_divergence(log_probs, mask, 4), expected, rtol=1e-5, atol=1e-7)
    assert expected[0, 3] == 0


def test_log_ratios_are_limited_to_eleven():
    """One token, of which one rollout is sure and one is 40 nats from it: d is ±20, taken as ±11."""
    log_probs, mask = np.array([[[[0.0]], [[-40.0]]]], np.float32), np.ones((1, 2, 1), bool)
    expected = ((np.exp(11.0) - 11 - 1) + (np.exp(-11.0) + 11 - 1)) / 2
    np.testing.assert_allclose(group_divergence(log_probs, mask, 4), [[expected]], rtol=1e-5)


def test_tiles_of_the_vocabulary_add_up():
    log_probs, mask = _case()
    tiles = group_divergence(log_probs[..., :1], mask, 4) + group_divergence(log_probs[..., 1:], mask, 4)
    np.testing.assert_allclose(tiles, group_divergence(log_probs, mask, 4), rtol=1e-5, atol=1e-7)


def test_weights_by_hand():
    mask = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]]], bool)
    # between 1 and 3; the last position, which nobody reached, is not the least
    weights = token_weights(np.array([[2.0, 3.0, 1.0, 0.0]]), mask, alpha=1.7)
    np.testing.assert_allclose(weights, [[[1.35, 1.7, 1.0, 1.0]]], rtol=1e-6)


def test_no_divergence_and_no_tokens_weigh_one():
    np.testing.assert_array_equal(
        token_weights(np.full((1, 3), 0.5), np.ones((1, 2, 3), bool), 1.5), np.ones((1, 1, 3))
    )
    np.testing.assert_array_equal(
        token_weights(np.arange(3.0)[None], np.zeros((1, 2, 3), bool), 1.5), np.ones((1, 1, 3))
    )
