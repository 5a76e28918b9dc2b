"""Log-probabilities of target tokens without ever holding the logits of all tokens."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jvlmm.sharding.rules import ShardingRules, fitting_spec


def project(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Logits float32 [..., V] of hidden [..., D] and head [V, D]; the product runs in hidden's dtype."""
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def target_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [...]: log softmax(hidden @ head.T) at `targets`, holding all logits [..., V]."""
    logits = project(hidden, head)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def tiled_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    tile: int,
    mask: jax.Array | None = None,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """`target_log_probs` in tiles of tokens, forward and backward.

    Tiles run along the length. The backward pass computes a tile's logits again. A tile in which nothing is wanted
    costs nothing. On a mesh every device tiles its own tokens against a head gathered once, whose gradient adds up on
    the device and is reduced once.

    Args:
        hidden: [B, L, D].
        head: [V, D].
        targets: int32 [B, L], each in [0, V).
        tile: tokens of a device whose logits exist at one time; at least one position of every row.
        mask: bool [B, L], the tokens that are wanted; None wants all.
        rules: how rows and lengths lie on the mesh in use.

    Returns:
        float32 [B, L]; what is not wanted may be 0 and has no gradient.
    """
    mask = jnp.ones(targets.shape, bool) if mask is None else mask
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return _tiled(hidden, head, targets, mask, tile)
    spec = fitting_spec(mesh, rules, ("batch", "length"), targets.shape)
    manual = {name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ())}
    whole = PartitionSpec(None, None)
    run = jax.shard_map(
        partial(_tiled, tile=tile),
        in_specs=(spec, whole, spec, spec),
        out_specs=spec,
        axis_names=manual,
        check_vma=False,
    )
    return run(hidden, head.astype(hidden.dtype), targets, mask)


def _tiled(hidden, head, targets, mask, tile):
    batch, length = targets.shape
    tiles = -(-length // max(1, min(length, tile // batch)))
    span = -(-length // tiles)  # as even as can be: the last tile is padded to it

    def split(x):
        widths = [(0, 0), (0, tiles * span - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths).reshape(batch, tiles, span, *x.shape[2:]).swapaxes(0, 1)

    log_probs = _over_tiles(split(hidden), head, split(targets), split(mask))  # [tiles, B, span]
    return log_probs.swapaxes(0, 1).reshape(batch, tiles * span)[:, :length]


@jax.custom_vjp
def _over_tiles(hidden, head, targets, mask):
    """float32 [tiles, B, span] of hidden [tiles, B, span, D]; 0 in tiles without a wanted token."""

    def one(tile):
        hidden, targets, mask = tile
        return jax.lax.cond(
            jnp.any(mask),
            lambda: jnp.where(mask, target_log_probs(hidden, head, targets), 0.0),
            lambda: jnp.zeros(targets.shape, jnp.float32),
        )

    return jax.lax.map(one, (hidden, targets, mask))


def _over_tiles_forward(hidden, head, targets, mask):
    return _over_tiles(hidden, head, targets, mask), (hidden, head, targets, mask)


def _over_tiles_backward(residuals, gradient):
    """d log p(target) / d logits = [v = target] - p(v). The head's gradient adds up in one buffer."""
    hidden, head, targets, mask = residuals

    def one(head_gradient, tile):
        hidden, targets, mask, gradient = tile

        def wanted(head_gradient):
            probabilities = jax.nn.softmax(project(hidden, head), axis=-1)
            chosen = jnp.arange(len(head)) == targets[..., None]
            of_logits = jnp.where(mask, gradient, 0.0)[..., None] * (chosen - probabilities)
            of_logits = of_logits.astype(hidden.dtype)
            of_head = jnp.einsum("bsv,bsd->vd", of_logits, hidden, preferred_element_type=jnp.float32)
            of_hidden = jnp.einsum("bsv,vd->bsd", of_logits, head.astype(hidden.dtype))
            return head_gradient + of_head, of_hidden

        return jax.lax.cond(jnp.any(mask), wanted, lambda kept: (kept, jnp.zeros_like(hidden)), head_gradient)

    start = jnp.zeros(head.shape, jnp.float32)
    of_head, of_hidden = jax.lax.scan(one, start, (hidden, targets, mask, gradient))
    return of_hidden, of_head.astype(head.dtype), None, None


_over_tiles.defvjp(_over_tiles_forward, _over_tiles_backward)
