"""The keys and values of past tokens."""

from dataclasses import fields
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jvlmm.models.attention import attend, attend_with_weights
from jvlmm.models.shared_prefix import attend_shared
from jvlmm.sharding.rules import row_axes

Stores = tuple[Any, Any]  # keys and values of a layer, or with a leading layer axis; tuples of one a layer elsewhere


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

    def opened(self) -> "KVCache":
        """The cache in which the next token's slot may be attended to."""
        new = jnp.ones_like(self.valid[:, :1])
        return self.replace(valid=jax.lax.dynamic_update_slice(self.valid, new, (0, self.length)))

    def layer(self, stores: Stores, number: int | jax.Array) -> "LayerCache":
        """The view of layer `number`, given the stores it writes to: its own, or all stacked where that is traced."""
        return LayerCache(stores, self.valid, self.length, _index(number))

    def written(self, keys, values) -> "KVCache":
        """The cache after a token, with the layers' new stores."""
        return self.replace(keys=keys, values=values, length=self.length + 1)


@flax.struct.dataclass
class LayerCache:
    """One layer's part of a KVCache while the layer runs."""

    stores: Stores  # [B, H_kv, T, head_dim], or [layers, B, H_kv, T, head_dim] with `index`
    valid: jax.Array  # bool [B, T]
    slot: jax.Array  # int32 []
    index: jax.Array | None = None  # int32 []: the layer's place on the leading axis

    def attend(self, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Stores]:
        """One token a row, [B, H, 1, head_dim] and [B, H_kv, 1, head_dim]: (mixed [B, 1, H, head_dim], stores)."""
        stores, own = self._written(key, value)
        segments = jnp.ones((len(query), 1), jnp.int32), self.valid.astype(jnp.int32)
        return attend(query, *own, *segments), stores

    def _written(self, key, value) -> tuple[Stores, Stores]:
        """(the stores with the token's key and value, those of this layer)."""
        start = (0, 0, self.slot, 0)
        stores = tuple(put(store, new, self.index, start) for store, new in zip(self.stores, (key, value), strict=True))
        return stores, tuple(of_layer(store, self.index) for store in stores)


class OpenLayerCache(LayerCache):
    """A LayerCache whose attention tells its weights."""

    def attend(self, query: jax.Array, key: jax.Array, value: jax.Array):
        """As `LayerCache.attend`, with (mixed, weights float32 [B, H, T]) in the place of mixed."""
        stores, own = self._written(key, value)
        return attend_with_weights(query, *own, self.valid.astype(jnp.int32)), stores


@flax.struct.dataclass
class GroupCache:
    """Keys and values of prompts, each once, and of the completions that G slots write to each.

    T columns are written in turn, by all slots at once, and over again from the first: a completion may begin at any
    column, for the order of keys says nothing (their rotation does), and is whole as long as it has at most T tokens.
    """

    prompt_keys: tuple[jax.Array, ...] | jax.Array  # [B, H_kv, P, head_dim] a layer, or with a leading layer axis
    prompt_values: tuple[jax.Array, ...] | jax.Array  # as prompt_keys
    prompt_valid: jax.Array  # bool [B, P]
    keys: tuple[jax.Array, ...] | jax.Array  # [B, H_kv, G, T, head_dim] a layer, or with a leading layer axis
    values: tuple[jax.Array, ...] | jax.Array  # as keys
    valid: jax.Array  # bool [B, G, T]: columns of the slot's own completion
    column: jax.Array  # int32 []: where the next token is written

    def opened(self) -> "GroupCache":
        """The cache in which the next token's column may be attended to."""
        new = jnp.ones_like(self.valid[:, :, :1])
        return self.replace(valid=jax.lax.dynamic_update_slice(self.valid, new, (0, 0, self.column)))

    def layer(self, stores: Stores, number: int | jax.Array) -> "GroupLayerCache":
        """As `KVCache.layer`."""
        prompt = self.prompt_keys[number], self.prompt_values[number]
        return GroupLayerCache(prompt, self.prompt_valid, stores, self.valid, self.column, _index(number))

    def written(self, keys, values) -> "GroupCache":
        """As `KVCache.written`."""
        return self.replace(keys=keys, values=values, column=(self.column + 1) % self.valid.shape[2])


@flax.struct.dataclass
class GroupLayerCache:
    """One layer's part of a GroupCache while the layer runs."""

    prompt: Stores  # [B, H_kv, P, head_dim]
    prompt_valid: jax.Array  # bool [B, P]
    stores: Stores  # [B, H_kv, G, T, head_dim], or with a leading layer axis
    valid: jax.Array  # bool [B, G, T]
    column: jax.Array  # int32 []
    index: jax.Array | None = None

    def attend(self, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Stores]:
        """As `LayerCache.attend`, for rows of slots: those of the first prompt, then those of the next."""
        prompts, group, _ = self.valid.shape
        grouped = lambda x: x.reshape(prompts, group, *x.shape[1:]).swapaxes(1, 2)  # noqa: E731
        start = (0, 0, 0, self.column, 0)
        stores = tuple(
            put(store, grouped(new), self.index, start) for store, new in zip(self.stores, (key, value), strict=True)
        )
        own = tuple(of_layer(store, self.index) for store in stores)
        mixed = attend_shared(grouped(query), self.prompt, own, self.prompt_valid, self.valid[:, :, None])
        return mixed.swapaxes(1, 2).reshape(query.shape).swapaxes(1, 2), stores


def _index(number: int | jax.Array) -> jax.Array | None:
    return None if isinstance(number, int) else number


def put(store: jax.Array, new: jax.Array, index: jax.Array | None, start: tuple) -> jax.Array:
    """Write into a layer's store at `start`; into the layer `index` of stacked ones."""
    if index is not None:
        new, start = new[None], (index, *start)
    return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), start)


def of_layer(store: jax.Array, index: jax.Array | None) -> jax.Array:
    """A layer's store, out of stacked ones where there is an index."""
    return store if index is None else jax.lax.dynamic_index_in_dim(store, index, keepdims=False)


def cache_axes(cache: KVCache | GroupCache) -> KVCache | GroupCache:
    """The logical axes of every array: rows, and of keys and values the heads, are split."""
    layers = () if isinstance(cache.keys, tuple) else (None,)

    def of(name: str, value: Any) -> Any:
        if not name.endswith(("keys", "values")):
            return row_axes(value)
        return jax.tree.map(lambda x: (*layers, *kv_head_axes(x.ndim - len(layers))), value)

    return cache.replace(**{field.name: of(field.name, getattr(cache, field.name)) for field in fields(cache)})


def kv_head_axes(ndim: int) -> tuple[str | None, ...]:
    """Logical axes of an array [B, H_kv, …] of so many dimensions."""
    return ("batch", "kv_heads", *(None,) * (ndim - 2))


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
