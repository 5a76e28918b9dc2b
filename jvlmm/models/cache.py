"""The keys and values of past tokens."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class KVCache:
    """Keys and values of every layer; all rows write at one slot, and pads of the prompts stay invalid.

    T is the capacity in tokens. With unrolled layers `keys` and `values` are tuples of one array a layer; with
    scanned layers they are one array with a leading layer axis.
    """

    keys: tuple[jax.Array, ...] | jax.Array  # [B, H_kv, T, head_dim] a layer, of the compute dtype
    values: tuple[jax.Array, ...] | jax.Array  # as keys
    valid: jax.Array  # bool [B, T]: slots that may be attended to
    length: jax.Array  # int32 []: the slot the next token is written to, the same for all rows


@flax.struct.dataclass
class LayerCache:
    """One layer's part of a KVCache while the layer runs."""

    keys: jax.Array  # [B, H_kv, T, head_dim], or [layers, B, H_kv, T, head_dim] with `layer`
    values: jax.Array  # as keys
    slot: jax.Array  # int32 []
    layer: jax.Array | None = None  # int32 []: the layer's place on the leading axis

    def write(self, keys: jax.Array, values: jax.Array) -> "LayerCache":
        """Put one token's keys and values [B, H_kv, 1, head_dim] into the slot."""
        return self.replace(keys=self._put(self.keys, keys), values=self._put(self.values, values))

    def read(self) -> tuple[jax.Array, jax.Array]:
        """The layer's keys and values, each [B, H_kv, T, head_dim]."""
        if self.layer is None:
            return self.keys, self.values
        return tuple(jax.lax.dynamic_index_in_dim(x, self.layer, keepdims=False) for x in (self.keys, self.values))

    def _put(self, store: jax.Array, new: jax.Array) -> jax.Array:
        start = (0, 0, self.slot, 0)
        if self.layer is not None:
            new, start = new[None], (self.layer, *start)
        return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), start)


def cache_from_prompt(keys, values, segment_ids: jax.Array, capacity: int) -> KVCache:
    """The cache after a prefill.

    Args:
        keys, values: tuples of [B, H_kv, L, head_dim], or one array with a leading layer axis.
        segment_ids: int32 [B, L]; 0 is padding.
        capacity: slots T of the cache, at least L.
    """
    length = segment_ids.shape[1]
    if capacity < length:
        raise ValueError(f"cache_length {capacity} is shorter than the prompt's {length} tokens")

    def widen(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, capacity - length), (0, 0)])

    valid = jnp.pad(segment_ids != 0, [(0, 0), (0, capacity - length)])
    keys, values = jax.tree.map(widen, (keys, values))
    return KVCache(keys, values, valid, jnp.asarray(length, jnp.int32))
