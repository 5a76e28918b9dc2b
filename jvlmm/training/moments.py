"""Adam's moments in bfloat16: half the memory of float32, with the update itself in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam_in_bfloat16(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` (Kingma & Ba, arXiv:1412.6980) whose two moments are kept in bfloat16.

    The update uses the new moments before they are rounded. The first is then rounded to nearest. The second changes
    by 1 - b2 of itself a step, 0.1 % with b2 = 0.999, and neighbours in bfloat16 lie 0.4 to 0.8 % apart: to nearest it
    would never fall again. It is rounded up or down at random, in such proportion that its mean is exact; the draws
    depend on the number of the update alone, so that a resumed run repeats them.

    Gradients are float32.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(lambda p: jnp.zeros_like(p, jnp.bfloat16), params)  # noqa: E731
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(gradients: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, Any]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, _float32(state.mu), b1, 1)
        nu = optax.tree.update_moment(gradients, _float32(state.nu), b2, 2)
        corrected = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), *corrected)
        leaves, structure = jax.tree.flatten(nu)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), count), len(leaves))
        rounded = structure.unflatten(map(round_at_random, leaves, keys))
        return updates, optax.ScaleByAdamState(count, optax.tree.cast(mu, jnp.bfloat16), rounded)

    return optax.GradientTransformation(init, update)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, to one of the two neighbours; the expected value is x (Gupta et al., arXiv:1502.02551)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (jax.random.bits(key, x.shape, jnp.uint32) >> 16)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
