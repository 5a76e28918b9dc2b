"""Advantages: how much better a rollout was than the others of its prompt.

Rewards lie in groups: [B, G] are G rollouts each of B prompts. `valid` marks those that have a reward; a rollout that
failed takes part in no mean, and its advantage is 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jvlmm.errors import ConfigError

STD_EPSILON = 1e-4  # added to standard deviations; TRL's and Video-R1's value


def group_advantages(
    rewards: jax.Array, scale: Literal["group", "none", "batch"] = "group", valid: jax.Array | None = None
) -> jax.Array:
    """Rewards relative to the mean of their group.

    A group of equal rewards has advantages of exactly 0, whatever rounding does to its mean; so has one with fewer
    than two valid rollouts.

    Args:
      rewards: float [B, G], all prompts of the optimiser step where `scale` is "batch".
      scale: what R − mean is divided by. "group": std of the group + 1e-4, ddof = 1 (GRPO, arXiv:2402.03300 §4.1.2);
        "none": nothing (Dr. GRPO, arXiv:2503.20783 §3); "batch": std of all valid rewards + 1e-4, ddof = 1
        (Lite PPO, arXiv:2508.08221).
      valid: bool [B, G]; None where all rollouts have a reward.

    Returns:
      float32 [B, G].

    Raises ConfigError for groups of one rollout and for an unknown scale.
    """
    require_groups(rewards.shape)
    rewards, valid = _prepared(rewards, valid)
    centred = jnp.where(valid, rewards - _mean(rewards, valid), 0.0)
    match scale:
        case "group":
            centred = centred / (_std(rewards, valid) + STD_EPSILON)
        case "batch":
            centred = centred / (_std(rewards.reshape(1, -1), valid.reshape(1, -1)) + STD_EPSILON)
        case "none":
            pass
        case unknown:
            raise ConfigError(f"grpo.scale={unknown!r} is unknown here; choose group, none or batch")
    return jnp.where(informative_groups(rewards, valid)[:, None], centred, 0.0)


def informative_groups(rewards: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """bool [B]: groups in which two valid rollouts have different rewards; the others have no gradient.

    Dynamic sampling keeps these and draws prompts anew for the others (DAPO, arXiv:2503.14476 §3.2).
    """
    rewards, valid = _prepared(rewards, valid)
    highest = jnp.where(valid, rewards, -jnp.inf).max(axis=1)
    lowest = jnp.where(valid, rewards, jnp.inf).min(axis=1)
    return highest > lowest


def difficulty(rewards: jax.Array, recent_mean: float | jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """float32 [B]: by how much the mean reward of a prompt falls short of that of recent prompts.

    Above 0 the prompt is harder than those (DeepVideo-R1, arXiv:2506.07464 eq. 9; its buffer holds 100 prompts). A
    group without a valid rollout is neither: 0.
    """
    rewards, valid = _prepared(rewards, valid)
    return jnp.where(valid.any(axis=1), recent_mean - _mean(rewards, valid)[:, 0], 0.0)


def difficulty_weights(difficulty: jax.Array, strength: float) -> jax.Array:
    """float32 [B]: exp(strength · difficulty), the weight of each prompt's loss; 1 for a prompt of usual difficulty.

    The survey of video post-training (§3.2, L_Reg-GRPO-DA and DGRPO) asks for a monotone weight and gives none; the
    exponential is our choice. DeepVideo-R1 itself changes the prompts instead.
    """
    return jnp.exp(strength * difficulty)


def require_groups(shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless `shape` is [B, G] with G of at least 2."""
    if len(shape) != 2 or shape[1] < 2:
        raise ConfigError(
            f"rewards of shape {list(shape)} have no group to be compared in; sample at least 2 rollouts a prompt"
        )


def _prepared(rewards: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """float32 rewards, 0 where there is none, and the mask."""
    valid = jnp.ones(rewards.shape, bool) if valid is None else jnp.asarray(valid, bool)
    return jnp.where(valid, jnp.asarray(rewards, jnp.float32), 0.0), valid


def _mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of the valid values of each row, [B, 1]; 0 where there is none."""
    return jnp.where(valid, values, 0.0).sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1)


def _std(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Standard deviation of the valid values of each row with ddof = 1, [B, 1]; 0 where there are fewer than two."""
    squares = jnp.where(valid, jnp.square(values - _mean(values, valid)), 0.0).sum(1, keepdims=True)
    return jnp.sqrt(squares / jnp.maximum(valid.sum(1, keepdims=True) - 1, 1))
