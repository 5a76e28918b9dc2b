"""Detection of a fixed list of classes over successive frames: is one here, in which box, and where does it go."""

import jax
import jax.numpy as jnp
import optax

_BOX_WEIGHT = 1.25  # of the distance summed over four coordinates, against the cross-entropy summed over classes
_MOTION_UNIT = 14.0  # motions are told in shares of the frame divided by this, so that common ones are about 1


def num_outputs(frames: int) -> int:
    """Outputs per class: presence and box in every frame, and the motion."""
    return 5 * frames + 2


def detection_loss(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of the presence of each class, and L1 of box and motion where it is present.

    Args:
        outputs: float32 [N, classes, num_outputs(frames)]: by frame the logit of the presence and the box
            (x1, y1, x2, y2), then the way of the box's first corner from the first frame to the last.
        targets: float32 [N, classes, frames, 5]: 1 where the class is present, else 0, then its box as shares of
            the frame's sides.

    Returns:
        (float32 []: sum over N, float32 []: N). Boxes and motions are averaged over the classes present.
    """
    predicted, motion = _split(outputs, targets)
    present, boxes = targets[..., 0], targets[..., 1:]
    presence = optax.sigmoid_binary_cross_entropy(predicted[..., 0], present).sum()
    box = _mean_distance(predicted[..., 1:], boxes, present)
    way = (boxes[:, :, -1, :2] - boxes[:, :, 0, :2]) * _MOTION_UNIT
    moved = _mean_distance(motion, way, present[:, :, 0] * present[:, :, -1])
    count = jnp.float32(len(outputs))
    return presence + (_BOX_WEIGHT * box + moved / 2) * count, count


def detection_f1(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 []: F1 of the presence at probability one half; arguments as for `detection_loss`."""
    claimed, present = _split(outputs, targets)[0][..., 0] > 0, targets[..., 0] > 0
    return 2 * jnp.sum(claimed & present) / jnp.maximum(claimed.sum() + present.sum(), 1)


def _split(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Presence and box shaped as the targets, and the motion [N, classes, 2]."""
    return outputs[..., :-2].reshape(targets.shape), outputs[..., -2:]


def _mean_distance(outputs: jax.Array, targets: jax.Array, present: jax.Array) -> jax.Array:
    """L1 summed over the last axis, averaged where `present` is 1."""
    return (jnp.abs(outputs - targets).sum(-1) * present).sum() / jnp.maximum(present.sum(), 1)
