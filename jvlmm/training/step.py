"""The jitted training step: gradients, accumulation, one optimiser update where loss and gradients are finite."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jvlmm.models.execution import compiler_options
from jvlmm.training.optimizer import Optimizer
from jvlmm.training.state import TrainState

LossFn = Callable[[Any, Any], tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]]


@flax.struct.dataclass
class GradientSums:
    """What microbatches add up to; divided by `count` only once, when all have been added."""

    gradients: Any  # float32, shaped as the trainable modules; of the summed loss
    loss: jax.Array  # float32 []
    count: jax.Array  # float32 [], weight of the loss tokens
    extras: Mapping[str, jax.Array]  # float32 [] each, e.g. number of tokens


class TrainStep:
    """Callable `(state, microbatches) -> (state, metrics)`; the state is donated.

    Microbatches may lie in different buckets: each shape compiles one program and later calls reuse it.
    Because sums and counts are added before dividing, a step over microbatches equals the step over the
    whole batch, however many loss tokens each of them holds.
    """

    def __init__(
        self, loss_fn: LossFn, optimizer: Optimizer, place: Callable[[Any], Any], shardings: Any, platform: str
    ):
        def sums(params, batch):
            return _gradient_sums(loss_fn, optimizer, params, batch)

        def update(state, total):
            return _update(optimizer, state, total)

        jit = partial(jax.jit, compiler_options=compiler_options(platform))
        out = {} if shardings is None else {"out_shardings": (shardings, None)}
        self._place = place
        self._whole = jit(lambda state, batch: update(state, sums(state.params, batch)), donate_argnums=0, **out)
        self._first = jit(sums)
        self._add = jit(
            lambda total, params, batch: jax.tree.map(jnp.add, total, sums(params, batch)), donate_argnums=0
        )
        self._update = jit(update, donate_argnums=(0, 1), **out)

    def __call__(self, state: TrainState, microbatches: Sequence[Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update, or none where the loss or the norm of the gradients is not finite: the state then stays the same.

        Its `step` counts both. Metrics are float32 scalars on the device: loss, grad_norm, param_norm, learning_rate,
        skipped (1 where the state stayed), extras.
        """
        first, *rest = map(self._place, microbatches)
        if not rest:
            return self._whole(state, first)
        total = self._first(state.params, first)
        for batch in rest:
            total = self._add(total, state.params, batch)
        return self._update(state, total)

    def state_at(self, state: TrainState, done: int) -> TrainState:
        """The state, or what is like it, after so many steps: always of the same arrays."""
        return state

    def trace(self, state: TrainState, batch: Any) -> jax.stages.Traced:
        """The program of one update on one batch, of ShapeDtypeStructs."""
        return self._whole.trace(state, batch)

    def trace_more(self, state: TrainState, batch: Any) -> jax.stages.Traced:
        """The program that adds a further microbatch to the sums of an update."""
        total = jax.eval_shape(self._first, state.params, batch)
        return self._add.trace(total, state.params, batch)

    @property
    def compiles(self) -> int:
        """Programs compiled so far; stands still once every bucket has been seen."""
        return sum(program._cache_size() for program in (self._whole, self._first, self._add, self._update))


def make_train_step(
    loss_fn: LossFn,
    optimizer: Optimizer,
    shardings: Any = None,
    place: Callable[[Any], Any] = lambda batch: batch,
    platform: str | None = None,
) -> TrainStep:
    """Build the step.

    Args:
      loss_fn: `(params, batch) -> (sum, count, extras)`: summed loss, the weight it sums over, and further
        sums to report (`extras["tokens"]` gives the throughput, with `extras["places"]`, padding included, the
        utilisation).
      optimizer: from `make_optimizer`; frozen modules get no gradient.
      shardings: TrainState of NamedSharding the new state keeps; None on one device.
      place: puts a host batch on the devices (see `placement.batch_placement`).
      platform: what it is compiled for; None is where JAX runs.
    """
    return TrainStep(loss_fn, optimizer, place, shardings, platform or jax.default_backend())


def _gradient_sums(loss_fn: LossFn, optimizer: Optimizer, params: Any, batch: Any) -> GradientSums:
    trainable, frozen = optimizer.split(params)

    def loss(trainable):
        total, count, extras = loss_fn({**trainable, **frozen}, batch)
        return total, (count, dict(extras))

    (total, (count, extras)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    to_float32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return jax.tree.map(to_float32, GradientSums(gradients, total, count, extras))


def _update(optimizer: Optimizer, state: TrainState, total: GradientSums) -> tuple[TrainState, dict[str, jax.Array]]:
    count = jnp.maximum(total.count, 1.0)
    gradients = jax.tree.map(lambda g: g / count, total.gradients)
    grad_norm = optax.tree.norm(gradients)
    trainable, frozen = optimizer.split(state.params)
    updated, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    # The choice depends on the gradients alone, so that XLA makes it element by element in the donated buffers; one
    # that waited for a norm of the new parameters would keep old and new ones at a time.
    finite = jnp.isfinite(total.loss) & jnp.isfinite(grad_norm)
    kept = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    updated = jax.tree.map(kept, updated, trainable)
    metrics = {
        "loss": total.loss / count,
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(optax.tree.cast(updated, jnp.float32)),
        "learning_rate": optimizer.learning_rate(state.opt_state),
        "loss_tokens": total.count,
        "skipped": 1.0 - finite.astype(jnp.float32),
        **total.extras,
    }
    opt_state = jax.tree.map(kept, opt_state, state.opt_state)
    params = {name: updated.get(name, frozen.get(name)) for name in state.params}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics
