"""Detection over successive frames: which classes are here, where is the foremost object, where does it go.

Box and motion have one readout for all classes, so that a later reader of the features need not know the class first.
"""

import jax
import jax.numpy as jnp
import optax

_BOX_WEIGHT = 1.25  # of the distance summed over four coordinates, against the cross-entropy summed over classes
_MOTION_WEIGHT = 1.0
_MOTION_UNIT = 12.0  # motions are told in shares of the frame divided by this, so that common ones are about 1


def num_outputs(classes: int, frames: int) -> int:
    """Outputs per place: the presence of each class and a box in every frame, and a motion."""
    return frames * (classes + 4) + 2


def detection_loss(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of the presence of each class, L1 of the box and squared error of the motion of an object.

    Args:
        outputs: float32 [N, num_outputs(classes, frames)]: logits of the presence by frame, boxes (x1, y1, x2, y2) by
            frame, and the way of the box's first corner from the first frame to the last.
        targets: float32 [N, frames, classes + 5]: by frame 1 or 0 for each class, 1 where there is an object, else 0,
            and its box as shares of the frame's sides.

    Returns:
        (float32 []: sum over N, float32 []: N). Boxes and motions are averaged over the places with an object.
    """
    logits, boxes, motion = _split(outputs, targets)
    present, visible, wanted = targets[..., :-5], targets[..., -5], targets[..., -4:]
    presence = optax.sigmoid_binary_cross_entropy(logits, present).sum()
    box = _mean(jnp.abs(boxes - wanted).sum(-1), visible)
    way = (wanted[:, -1, :2] - wanted[:, 0, :2]) * _MOTION_UNIT
    moved = _mean(jnp.square(motion - way).sum(-1), visible[:, 0] * visible[:, -1])
    count = jnp.float32(len(outputs))
    return presence + (_BOX_WEIGHT * box + _MOTION_WEIGHT * moved) * count, count


def detection_f1(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 []: F1 of the presence at probability one half; arguments as for `detection_loss`."""
    claimed, present = _split(outputs, targets)[0] > 0, targets[..., :-5] > 0
    return 2 * jnp.sum(claimed & present) / jnp.maximum(claimed.sum() + present.sum(), 1)


def _split(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [N, frames, classes], boxes [N, frames, 4], motions [N, 2]."""
    count, frames, width = targets.shape
    classes = width - 5
    logits, boxes, motion = jnp.split(outputs, [frames * classes, frames * (classes + 4)], axis=-1)
    return logits.reshape(count, frames, classes), boxes.reshape(count, frames, 4), motion


def _mean(values: jax.Array, present: jax.Array) -> jax.Array:
    """The mean where `present` is 1."""
    return (values * present).sum() / jnp.maximum(present.sum(), 1)
