"""The moving average of a student, which teaches it."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_update(teacher: Any, student: Any, decay: float = 0.99) -> Any:
    """`decay` · teacher + (1 − decay) · student, float32 whatever the student has.

    A teacher kept in bfloat16 hardly follows: a step of (1 − decay) of the distance is mostly less than half the
    spacing of its numbers, and is rounded away.
    """
    follow = lambda t, s: decay * t.astype(jnp.float32) + (1 - decay) * s.astype(jnp.float32)  # noqa: E731
    return jax.tree.map(follow, teacher, student)
