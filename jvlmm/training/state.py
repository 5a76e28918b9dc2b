"""Everything a training step carries from one call to the next."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jvlmm.training.optimizer import Optimizer


@flax.struct.dataclass
class TrainState:
    """Parameters and optimiser state after `step` steps, those whose update was skipped among them; a plain pytree."""

    step: jax.Array  # int32 []
    params: Mapping[str, Any]  # {module: nested dict of arrays}; the model's in its `param_dtype`, adapters float32
    opt_state: Any  # optax state of the trainable modules; moments shaped as their parameters
    teacher: Any = None  # float32, as the trainable modules; see `training.teaching`. No TrainStep takes it


def create_state(params: Mapping[str, Any], optimizer: Optimizer) -> TrainState:
    """State before the first update. The step donates it, so `params` may not be used afterwards.

    Weakly typed parameters (`jnp.full(n, 0.1)`) become ordinary ones: the step returns ordinary ones, and
    a change of type would compile it twice.
    """
    params = jax.tree.map(lambda p: p.astype(p.dtype), params)
    trainable, _ = optimizer.split(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(trainable))
