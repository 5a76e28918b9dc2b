"""The TPU kernel, interpreted on this machine, computes what the reference computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.models import splash
from jvlmm.models.attention import attend


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "length", "causal"),
    [(4, 2, 128, 256, True), (2, 2, 80, 200, False)],
    ids=["decoder", "tower"],
)
def test_splash_equals_the_reference_forward_and_backward(heads, kv_heads, head_dim, length, causal):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, heads, length, head_dim)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, kv_heads, length, head_dim)).astype(np.float32)
    segments = np.sort(rng.integers(1, 4, (2, length)), axis=1).astype(np.int32)
    segments[1, 150:] = 0  # padding
    real = (segments > 0)[..., None, None]

    def loss(attention):
        return lambda *x: jnp.sum(jnp.sin(attention(*x)) * real)

    def kernel(*x):
        return splash.attend(*x, segments, segments, causal, interpret=True)

    def reference(*x):
        return attend(*x, segments, segments, causal)

    inputs = query, key, value
    np.testing.assert_allclose(kernel(*inputs) * real, reference(*inputs) * real, atol=2e-5)
    ours, expected = (jax.grad(loss(f), (0, 1, 2))(*inputs) for f in (kernel, reference))
    for name, a, b in zip(("query", "key", "value"), ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)


def test_short_sequences_are_left_to_the_reference():
    window, token = np.zeros((1, 2, 64, 80)), np.zeros((1, 2, 1, 128))
    assert not splash.fits(window, window) and not splash.fits(token, np.zeros((1, 2, 512, 128)))
