"""V-Reason's mathematics (arXiv:2510.17045): a shift of the last layer's values at video tokens, steered by entropy.

Everything is of one question, float32, and meant to be mapped over questions with `jax.vmap`: H_kv key/value heads,
N video rows (padding included), d the size of a head, H query heads. Where the paper names no value or direction, the
docstring says so and the value is an option.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jvlmm.errors import ConfigError

Mode = Literal["switch", "always_down", "always_up", "random", "off"]
Rank = Literal["value", "key"]


@dataclass(frozen=True)
class LiteOptions:
    """V-Reason Lite: the video rows of low norm leave the cache of every layer after the prompt is read.

    The paper halves the video tokens; that values rank them, averaged over heads, is our inference: keys of low norm
    are those that are attended to most.
    """

    ratio: float = 0.5  # of a prompt's video rows that leave, rounded down
    rank_by: Rank = "value"
    per_head: bool = False  # every key/value head drops rows of its own, instead of one set a layer

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError(f"lite.ratio={self.ratio} is not allowed; give a number in (0, 1), or leave Lite out")
        if self.rank_by not in get_args(Rank):
            raise ConfigError(f"lite.rank_by={self.rank_by!r} is unknown; choose one of {', '.join(get_args(Rank))}")


@dataclass(frozen=True)
class VReasonOptions:
    """How the controller is trained while a question is answered.

    `switch` raises entropy while its moving average stands at its maximum and lowers it elsewhere; the other modes do
    one of both, or either by chance, or nothing. All defaults but `k` are ours: the paper's are not public.
    """

    mode: Mode = "switch"
    k: int = 2  # an update every k-th token
    inner_steps: int = 1  # of the optimiser in an update
    lr: float = 3e-3
    b1: float = 0.9  # of Adam; 0 forgets the direction before a switch
    b2: float = 0.999
    eps: float = 1e-8
    beta: float = 0.95  # of the entropy's moving average
    min_entropy: float = 0.0  # nats, below which entropy is not lowered any more
    resample_after_update: bool = False  # a token is drawn from the values after its own update
    trace: bool = False  # entropies and norms of every token are kept
    lite: LiteOptions | None = None

    def __post_init__(self) -> None:
        checks = (
            ("mode", self.mode in get_args(Mode), f"one of {', '.join(get_args(Mode))}"),
            ("k", self.k >= 1, "an integer of at least 1"),
            ("inner_steps", self.inner_steps >= 1, "an integer of at least 1"),
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("b1", 0 <= self.b1 < 1, "a number in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "a number in [0, 1)"),
            ("eps", 0 < self.eps < math.inf, "a positive number"),
            ("beta", 0 <= self.beta < 1, "a number in [0, 1)"),
            ("min_entropy", 0 <= self.min_entropy < math.inf, "a number of at least 0 (0 is off)"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise ConfigError(f"vreason.{name}={getattr(self, name)!r} is not allowed; give {allowed}")


def adam(options: VReasonOptions) -> optax.GradientTransformation:
    """The inner optimiser of the options (Kingma and Ba 2015)."""
    return optax.adam(options.lr, options.b1, options.b2, options.eps)


# --- The switch -----------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Switch:
    """The entropy's moving average and its running maximum, float32 []."""

    ema: jax.Array
    peak: jax.Array


def entropy_of(logits: jax.Array) -> jax.Array:
    """float32 [...] in nats of softmax(logits), float32 [..., V]: full vocabulary, before temperature and filters."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.maximum(-jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1), 0.0)


def first_switch(entropy: jax.Array) -> Switch:
    """After the first token: the average is its entropy."""
    return Switch(ema=entropy, peak=entropy)


def advanced(switch: Switch, entropy: jax.Array, beta: float) -> Switch:
    """After one more token: ema = β · ema + (1 - β) · H."""
    ema = beta * switch.ema + (1 - beta) * entropy
    return Switch(ema=ema, peak=jnp.maximum(switch.peak, ema))


def sign_of(switch: Switch, mode: Mode, key: jax.Array) -> jax.Array:
    """α float32 []: +1 raises the entropy, -1 lowers it; `key` is of use to `random` alone."""
    match mode:
        case "switch":
            return jnp.where(switch.ema < switch.peak, -1.0, 1.0)
        case "random":
            return jax.random.rademacher(key, (), jnp.float32)
        case "always_up":
            return jnp.ones_like(switch.ema)
        case "always_down":
            return -jnp.ones_like(switch.ema)
        case "off":
            return jnp.zeros_like(switch.ema)


def switch_loss(logits: jax.Array, sign: jax.Array) -> jax.Array:
    """α · KL(p ‖ U) = α · (log V - H), float32 [], of logits [V]."""
    return sign * (math.log(logits.shape[-1]) - entropy_of(logits))


def switch_loss_gradient(logits: jax.Array, sign: jax.Array) -> jax.Array:
    """d `switch_loss` / d logits [..., V] = α · p · (log p + H)."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probs)
    entropy = -jnp.sum(probabilities * log_probs, axis=-1, keepdims=True)
    return sign[..., None] * probabilities * (log_probs + entropy)


# --- The controller -------------------------------------------------------------------------------------------------


def preserved(values: jax.Array, delta: jax.Array) -> jax.Array:
    """(V + ΔV) · ‖V‖ / ‖V + ΔV‖ over the last axis; 0 where V + ΔV is."""
    moved = values + delta
    norm = safe_norm(moved)
    return moved * (safe_norm(values) / jnp.where(norm == 0, 1.0, norm))


def safe_norm(x: jax.Array) -> jax.Array:
    """L2 norm [..., 1] of the last axis, with gradient 0 at 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(squares == 0, 0.0, jnp.sqrt(jnp.where(squares == 0, 1.0, squares)))


def shift_of_output(weights: jax.Array, shift: jax.Array) -> jax.Array:
    """What the shift V_new - V [H_kv, N, d] adds to the heads' outputs [H, d], given their weights [H, N]."""
    grouped = weights.reshape(shift.shape[0], -1, shift.shape[1])
    return jnp.einsum("krn,knd->krd", grouped, shift).reshape(len(weights), -1)


def gradient(values: jax.Array, delta: jax.Array, weights: jax.Array, of_output: jax.Array) -> jax.Array:
    """dL / dΔV [H_kv, N, d] in closed form, exact because ΔV does not change the weights of the token at hand.

    With g = dL / d(output) of a head, dL / dV_new = Σ_h a_h · g_h over the query heads of a key/value head, and
    dL / dΔV = (‖V‖ / ‖V + ΔV‖) · (I - u uᵀ) · dL / dV_new with u = (V + ΔV) / ‖V + ΔV‖.

    Args:
        values, delta: [H_kv, N, d].
        weights: [H, N], a: 0 on padding.
        of_output: [H, d], g.
    """
    heads = values.shape[0]
    grouped = weights.reshape(heads, -1, weights.shape[1]), of_output.reshape(heads, -1, of_output.shape[1])
    of_new = jnp.einsum("krn,krd->knd", *grouped)
    moved = values + delta
    norm = safe_norm(moved)
    safe = jnp.where(norm == 0, 1.0, norm)
    along = moved / safe
    across = of_new - along * jnp.sum(along * of_new, axis=-1, keepdims=True)
    return safe_norm(values) / safe * across


def descended(
    optimizer: optax.GradientTransformation, gradient: jax.Array, state: Any, delta: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, Any, jax.Array]:
    """One step: (delta, optimiser's state, bool []: whether it failed, as ΔV or its norm would not be finite).

    Where it fails, or is not `wanted` (bool []), delta and state stay as they were.
    """
    updates, new_state = optimizer.update(gradient, state, delta)
    new_delta = optax.apply_updates(delta, updates)
    finite = jnp.isfinite(jnp.sum(jnp.square(new_delta)))
    taken = finite & wanted
    pick = lambda new, old: jnp.where(taken, new, old)  # noqa: E731
    return pick(new_delta, delta), jax.tree.map(pick, new_state, state), wanted & ~finite
