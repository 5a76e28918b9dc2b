"""Log-probabilities of target tokens without ever holding the logits of all tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jvlmm.sharding.rules import ShardingRules, fitting_spec, mesh_axes, partition_spec

WORDS = 2**15  # of the vocabulary whose logits exist at one time
_LOWEST = -1e30


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
    temperature: float = 1.0,
) -> jax.Array:
    """`target_log_probs` in tiles of tokens and of words, forward and backward.

    The backward pass computes a tile's logits again. A tile in which nothing is wanted costs nothing. On a mesh every
    device reads its own tokens; a tile of the head is gathered for it, and its gradient scattered again.

    Args:
        hidden: [B, L, D].
        head: [V, D].
        targets: int32 [B, L], each in [0, V).
        tile: tokens of a device whose logits exist at one time; at least one position of every row.
        mask: bool [B, L], the tokens that are wanted; None wants all.
        rules: how rows, lengths and the head lie on the mesh in use.
        temperature: positive, by which the logits are divided.

    Returns:
        float32 [B, L]; what is not wanted is 0 and has no gradient.
    """
    mask = jnp.ones(targets.shape, bool) if mask is None else mask

    def local(*arrays, gathered=()):
        return _tiled(*arrays, tile, temperature, gathered)

    return _on_mesh(local, (hidden, head, targets, mask), rules)


def tiled_best_words(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    tile: int,
    top_k: int,
    mask: jax.Array | None = None,
    rules: ShardingRules | None = None,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`tiled_log_probs` without gradient, with logits: of the targets, and of each place's best words.

    Returns (log-probs float32 [B, L], logits of the targets float32 [B, L], the K = min(top_k, V) best words int32
    [B, L, K] and their logits float32 [B, L, K], falling). Logits are divided by the temperature. What is not wanted
    is 0.
    """
    mask = jnp.ones(targets.shape, bool) if mask is None else mask
    hidden, head = jax.lax.stop_gradient((hidden, head))
    local = partial(_best_words, tile=tile, top_k=min(top_k, len(head)), temperature=temperature)
    return _on_mesh(local, (hidden, head, targets, mask), rules)


def _on_mesh(local: Callable, arrays: tuple[jax.Array, ...], rules: ShardingRules | None) -> Any:
    """`local(hidden, head, targets, mask, gathered=…)`, each device on its own tokens and its part of the head."""
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return local(*arrays)
    of_tokens = fitting_spec(mesh, rules, ("batch", "length"), arrays[2].shape)
    of_head = PartitionSpec(None, *partition_spec(rules, ("embed",)))  # how words are split is left to the compiler
    manual = {*mesh_axes(of_tokens), *mesh_axes(of_head)}
    if not manual:
        return local(*arrays)
    specs = (of_tokens, of_head, of_tokens, of_tokens)
    local = partial(local, gathered=mesh_axes(of_head))
    return jax.shard_map(local, in_specs=specs, out_specs=of_tokens, axis_names=manual, check_vma=False)(*arrays)


def _best_words(hidden, head, targets, mask, tile, top_k, temperature, gathered=()):
    split, joined = _tiling(targets.shape, tile)
    tiles = split(hidden), split(targets), split(mask)
    words = word_tiles(head)
    number = words.shape[1]

    def over_words(state, index):
        rows = _gather(words[:, index], gathered, hidden.dtype)

        def one(arguments):
            (hidden, targets, mask), state = arguments

            def update(state):
                (best, ids), *sums = state
                logits = project(hidden, rows) / temperature
                candidates = jnp.broadcast_to(jnp.arange(len(rows)) * number + index, logits.shape)
                every = jnp.concatenate([best, logits], -1), jnp.concatenate([ids, candidates], -1)
                best, chosen = jax.lax.top_k(every[0], top_k)
                ids = jnp.take_along_axis(every[1], chosen, -1)
                return (best, ids), *_update(sums, logits, targets, index, number)

            return jax.lax.cond(jnp.any(mask), update, lambda state: state, state)

        return jax.lax.map(one, (tiles, state)), None

    zeros = jnp.zeros(tiles[1].shape, jnp.float32)
    of_best = jnp.full((*zeros.shape, top_k), _LOWEST), jnp.zeros((*zeros.shape, top_k), jnp.int32)
    start = of_best, zeros + _LOWEST, zeros, zeros
    ((best, ids), peak, total, chosen), _ = jax.lax.scan(over_words, start, jnp.arange(number))
    wanted = lambda x: joined(jnp.where(tiles[2].reshape(tiles[2].shape + (1,) * (x.ndim - 3)), x, 0))  # noqa: E731
    log_probs = chosen - peak - jnp.log(jnp.maximum(total, 1e-30))
    return wanted(log_probs), wanted(chosen), wanted(ids), wanted(best)


def logits_at(hidden: jax.Array, head: jax.Array, words: jax.Array, tile: int, temperature: float = 1.0) -> jax.Array:
    """float32 [B, L, K]: the logits of hidden [B, L, D] at words int32 [B, L, K] alone, of so many tokens at a time."""
    split, joined = _tiling(words.shape[:2], tile)

    def one(arguments):
        hidden, words = arguments
        rows = jnp.take(head, words, axis=0).astype(hidden.dtype)
        return jnp.einsum("bld,blkd->blk", hidden, rows, preferred_element_type=jnp.float32)

    return joined(jax.lax.map(one, (split(hidden), split(words)))) / temperature


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _tiled(hidden, head, targets, mask, tile, temperature, gathered):
    """One device's part. `gathered` are the mesh axes that split the width of its `head`."""
    return _tiled_forward(hidden, head, targets, mask, tile, temperature, gathered)[0]


def _tiled_forward(hidden, head, targets, mask, tile, temperature, gathered):
    """The normaliser of each token is updated word tile by word tile (online softmax, Milakov and Gimelshein 2018)."""
    split, joined = _tiling(targets.shape, tile)
    tiles = split(hidden), split(targets), split(mask)
    words = word_tiles(head)

    def over_words(state, index):
        rows = _gather(words[:, index], gathered, hidden.dtype)

        def one(arguments):
            (hidden, targets, mask), state = arguments
            logits = lambda: project(hidden, rows) / temperature  # noqa: E731
            update = lambda state: _update(state, logits(), targets, index, words.shape[1])  # noqa: E731
            return jax.lax.cond(jnp.any(mask), update, lambda state: state, state)

        return jax.lax.map(one, (tiles, state)), None

    zeros = jnp.zeros(tiles[1].shape, jnp.float32)
    start = (zeros + _LOWEST, zeros, zeros)
    (peak, total, chosen), _ = jax.lax.scan(over_words, start, jnp.arange(words.shape[1]))
    normaliser = jnp.where(tiles[2], peak + jnp.log(jnp.maximum(total, 1e-30)), 0.0)
    log_probs = joined(jnp.where(tiles[2], chosen - normaliser, 0.0))
    return log_probs, (hidden, head, targets, mask, joined(normaliser))


def _update(state, logits, targets, index, tiles):
    """(peak, sum of exponentials, target's logit) of each token after one more of so many tiles of words."""
    peak, total, chosen = state
    new_peak = jnp.maximum(peak, logits.max(axis=-1))
    total = total * jnp.exp(peak - new_peak) + jnp.exp(logits - new_peak[..., None]).sum(axis=-1)
    found = jnp.take_along_axis(logits, (targets // tiles)[..., None], axis=-1)[..., 0]
    return new_peak, total, jnp.where(targets % tiles == index, found, chosen)


def _tiled_backward(tile, temperature, gathered, residuals, gradient):
    """d log p(target) / d logits = ([v = target] - p(v)) / temperature."""
    hidden, head, targets, mask, normaliser = residuals
    split, joined = _tiling(targets.shape, tile)
    tiles = split(hidden), split(targets), split(mask), split(normaliser), split(gradient)
    words = word_tiles(head)

    def over_words(of_hidden, index):
        rows = _gather(words[:, index], gathered, hidden.dtype)

        def one(of_rows, arguments):
            (hidden, targets, mask, normaliser, gradient), of_hidden = arguments

            def wanted(of_rows, of_hidden):
                probabilities = jnp.exp(project(hidden, rows) / temperature - normaliser[..., None])
                chosen = (targets - index)[..., None] == words.shape[1] * jnp.arange(len(rows))
                of_logits = jnp.where(mask, gradient / temperature, 0.0)[..., None] * (chosen - probabilities)
                of_logits = of_logits.astype(hidden.dtype)
                of_rows += jnp.einsum("bsv,bsd->vd", of_logits, hidden, preferred_element_type=jnp.float32)
                of_hidden += jnp.einsum("bsv,vd->bsd", of_logits, rows, preferred_element_type=jnp.float32)
                return of_rows, of_hidden

            return jax.lax.cond(jnp.any(mask), wanted, lambda *kept: kept, of_rows, of_hidden)

        of_rows, of_hidden = jax.lax.scan(one, jnp.zeros(rows.shape, jnp.float32), (tiles, of_hidden))
        if gathered:
            of_rows = jax.lax.psum_scatter(of_rows, gathered, scatter_dimension=1, tiled=True)
        return of_hidden, of_rows

    start = jnp.zeros(tiles[0].shape, jnp.float32)
    of_hidden, of_words = jax.lax.scan(over_words, start, jnp.arange(words.shape[1]))
    of_head = of_words.swapaxes(0, 1).reshape(head.shape).astype(head.dtype)
    return joined(of_hidden).astype(hidden.dtype), of_head, None, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _tiling(shape, tile):
    """Functions from [B, L, ...] to tiles [tiles, B, span, ...] of about `tile` tokens, and back."""
    batch, length = shape
    tiles = -(-length // max(1, min(length, tile // batch)))
    span = -(-length // tiles)  # as even as can be: the last tile is padded to it

    def split(x):
        widths = [(0, 0), (0, tiles * span - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths).reshape(batch, tiles, span, *x.shape[2:]).swapaxes(0, 1)

    def joined(x):
        return x.swapaxes(0, 1).reshape(batch, tiles * span, *x.shape[3:])[:, :length]

    return split, joined


def word_tiles(head: jax.Array) -> jax.Array:
    """[V / n, n, D] of a head [V, D]: tile i is every n-th word from i on, so that each device's share is in all."""
    vocab = len(head)
    tiles = next(n for n in range(-(-vocab // WORDS), vocab + 1) if vocab % n == 0)
    return head.reshape(vocab // tiles, tiles, head.shape[1])


def _gather(rows, gathered, dtype):
    rows = rows.astype(dtype)
    return jax.lax.all_gather(rows, gathered, axis=1, tiled=True) if gathered else rows
