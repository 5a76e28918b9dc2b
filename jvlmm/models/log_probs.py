"""Log-probabilities of target tokens without ever holding the logits of all tokens."""

import jax
import jax.numpy as jnp


def project(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Logits float32 [..., V] of hidden [..., D] and head [V, D]; the product runs in hidden's dtype."""
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def target_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [...]: log softmax(hidden @ head.T) at `targets`, holding all logits [..., V]."""
    logits = project(hidden, head)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def tiled_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array, tile: int) -> jax.Array:
    """`target_log_probs` in tiles of tokens, forward and backward.

    Tiles run along the length, so that a batch axis sharded over devices stays sharded inside each tile. The
    backward pass computes a tile's logits again.

    Args:
        hidden: [B, L, D].
        head: [V, D].
        targets: int32 [B, L], each in [0, V).
        tile: tokens of the batch whose logits exist at one time; at least one position of every row.

    Returns:
        float32 [B, L].
    """
    batch, length = targets.shape
    span = max(1, min(length, tile // batch))
    tiles = -(-length // span)
    if tiles == 1:
        return target_log_probs(hidden, head, targets)

    def split(x):
        widths = [(0, 0), (0, tiles * span - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths).reshape(batch, tiles, span, *x.shape[2:]).swapaxes(0, 1)

    one = jax.checkpoint(lambda pair: target_log_probs(pair[0], head, pair[1]))
    log_probs = jax.lax.map(one, (split(hidden), split(targets)))  # [tiles, B, span]
    return log_probs.swapaxes(0, 1).reshape(batch, tiles * span)[:, :length]
