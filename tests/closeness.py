"""When two trees of gradients count as equal, and how far apart two trees are."""

import jax
import numpy as np


def assert_gradients_equal(found, expected, rtol=1e-5):
    """Every array within `rtol` of the largest element of the expected one.

    A key's bias cancels in the softmax; what is left of its gradient is rounding, and is compared with that of values.
    """
    expected, structure = jax.tree_util.tree_flatten_with_path(jax.device_get(expected))
    largest = {jax.tree_util.keystr(path): float(np.abs(e).max()) for path, e in expected}
    worst = {}
    for (path, e), f in zip(expected, structure.flatten_up_to(jax.device_get(found)), strict=True):
        name = jax.tree_util.keystr(path)
        scale = largest[name.replace("k_proj']['bias", "v_proj']['bias")]
        worst[name] = float(np.abs(np.asarray(f, np.float64) - e).max()) / scale
    apart = {name: error for name, error in worst.items() if not error <= rtol}
    assert not apart, apart


def apart(left, right):
    """The largest difference between two trees of arrays."""
    pairs = zip(*map(jax.tree.leaves, (left, right)), strict=True)
    return max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
