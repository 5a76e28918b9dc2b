"""The supervised loss against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jvlmm.objectives.sft import sft_loss

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9))
cases = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(-20, 0, width=32)), hnp.arrays(np.bool_, shape)
    )
)


@settings(deadline=None)  # the first examples compile
@given(cases)
def test_equals_the_definition(case):
    log_probs, mask = case
    total, count = sft_loss(log_probs, mask)
    np.testing.assert_allclose(total, -log_probs[mask].sum(dtype=np.float64), rtol=1e-5, atol=1e-5)
    assert count == mask.sum()


@settings(deadline=None)  # the first examples compile
@given(cases, st.integers(0, 4))
def test_parts_add_up_to_the_whole(case, cut):
    whole = np.array(sft_loss(*case))
    parts = np.array(sft_loss(*(x[:cut] for x in case))) + np.array(sft_loss(*(x[cut:] for x in case)))
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_masked_tokens_reach_neither_loss_nor_gradient():
    log_probs, mask = jnp.array([[-1.0, -jnp.inf, -2.0, jnp.nan]]), jnp.array([[True, False, True, False]])
    total, gradient = jax.value_and_grad(lambda x: sft_loss(x, mask)[0])(log_probs)
    assert total == 3
    np.testing.assert_array_equal(gradient, [[-1, 0, -1, 0]])
