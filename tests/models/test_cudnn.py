"""What surrounds cuDNN's kernel, with jax.nn's own attention in the kernel's place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.models import cudnn
from jvlmm.models.attention import attend


def _outcome(function, arrays, segments, causal, weights):
    """(the output, the gradients of its sum with these weights)."""
    mixed = lambda x: jnp.sum(weights * function(*x, segments, segments, causal))  # noqa: E731
    return function(*arrays, segments, segments, causal), jax.grad(mixed)(arrays)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@jax.default_matmul_precision("highest")
def test_it_equals_the_reference_forward_and_backward(causal, packed):
    key = jax.random.key(0)
    shapes = ((2, 4, 24, 16), (2, 2, 24, 16), (2, 2, 24, 16), (2, 24, 4, 16))
    *arrays, weights = (jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 4), shapes, strict=True))
    segments = jnp.array(np.repeat([[1, 2, 0], [1, 1, 3]], 8, axis=1), jnp.int32) if packed else None

    expected = _outcome(attend, arrays, segments, causal, weights)
    found = _outcome(partial(cudnn.attend, implementation="xla"), arrays, segments, causal, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


def test_it_is_for_half_precision_and_several_queries():
    def fits(length=64, head_dim=128, dtype=jnp.bfloat16):
        shape = jax.ShapeDtypeStruct((1, 2, length, head_dim), dtype)
        return cudnn.fits(shape, shape)

    assert fits() and fits(head_dim=80)
    assert not fits(dtype=jnp.float32) and not fits(length=1) and not fits(head_dim=160) and not fits(head_dim=20)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU: JAX_PLATFORMS=cuda")
@pytest.mark.parametrize(("causal", "head_dim"), [(True, 128), (False, 80)])
def test_the_kernel_itself_equals_the_reference(causal, head_dim):
    key = jax.random.key(0)
    shapes = ((2, 8, 256, head_dim), (2, 4, 256, head_dim), (2, 4, 256, head_dim), (2, 256, 8, head_dim))
    *arrays, weights = (jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 4), shapes, strict=True))
    arrays = [x.astype(jnp.bfloat16) for x in arrays]
    segments = jnp.array(np.repeat([[1, 2, 3, 0], [1, 1, 2, 3]], 64, axis=1), jnp.int32)

    found = _outcome(cudnn.attend, arrays, segments, causal, weights)
    with jax.default_matmul_precision("highest"):
        expected = _outcome(attend, [x.astype(jnp.float32) for x in arrays], segments, causal, weights)
    used = np.array(segments > 0)[:, :, None, None]
    np.testing.assert_allclose(found[0] * used, expected[0] * used, rtol=0.02, atol=0.02)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.02, atol=0.06), found[1], expected[1]
    )
