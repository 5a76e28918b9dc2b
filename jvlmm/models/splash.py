"""Attention by the splash kernel of JAX's Pallas library: scores never leave the TPU core."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from jvlmm.models.remat import ATTENDED
from jvlmm.models.shared_prefix import SharedPrefix
from jvlmm.sharding.rules import ShardingRules, partition_spec, split_count

_LANES = 128  # lengths are padded to a multiple of it
_BLOCK = 512


def fits(query: jax.Array, key: jax.Array) -> bool:
    """Whether the sequences are long enough to be worth a kernel: windows and single tokens are not."""
    return min(query.shape[2], key.shape[2]) >= _LANES


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None,
    key_segments: jax.Array | None,
    causal: bool,
    rules: ShardingRules | None = None,
    interpret: bool = False,
    prefix: SharedPrefix | None = None,
) -> jax.Array:
    """As `attention.attend`, but padding attends to padding. On a mesh each device runs its own rows and heads."""
    length, keys = query.shape[2], key.shape[2]
    if query_segments is None:
        query_segments = jnp.ones((query.shape[0], length), jnp.int32)
        key_segments = jnp.ones((key.shape[0], keys), jnp.int32)
    query, query_segments = _padded(query, 2), _padded(query_segments, 1)
    key, value, key_segments = _padded(key, 2), _padded(value, 2), _padded(key_segments, 1)
    query = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    make = partial(_kernel, query.shape, key.shape[2], causal, prefix, interpret)
    if rules is None or mesh.empty:
        mixed = _run(make(1, 1), query, key, value, query_segments, key_segments)
    else:
        rows, heads, along = partition_spec(rules, ("batch", "heads", "length"))
        rows = rows if query.shape[0] % split_count(mesh, rows) == 0 else None
        along = along if causal and query.shape[2] % (split_count(mesh, along) * _LANES) == 0 else None
        kernel = make(split_count(mesh, heads), split_count(mesh, along))
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, along)))
        of_keys = PartitionSpec(rows, heads, None, None)
        of_query = PartitionSpec(rows, heads, along, None)
        specs = (of_kernel, of_query, of_keys, of_keys, PartitionSpec(rows, along), PartitionSpec(rows, None))
        run = jax.shard_map(_run, in_specs=specs, out_specs=of_query, check_vma=False)
        mixed = run(kernel, query, key, value, query_segments, key_segments)
    return mixed[:, :, :length].swapaxes(1, 2).astype(value.dtype)


def _run(kernel, query, key, value, query_segments, key_segments):
    segments = kernels.SegmentIds(query_segments, key_segments)
    return jax.vmap(kernel)(query, key, value, segments)


@dataclass(frozen=True)
class _PrefixMask(masks.Mask):
    """Causal inside the prompt and inside each completion, and from completions to the prompt; made block by block."""

    size: int  # of rows and columns, padding included
    prefix: SharedPrefix

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def __getitem__(self, slices) -> np.ndarray:
        rows, columns = (np.arange(self.size)[part] for part in slices)
        begin = self.prefix.prompt
        completion = lambda places: (places - begin) // self.prefix.completion  # noqa: E731
        same = completion(rows)[:, None] == completion(columns)[None, :]
        return (rows[:, None] >= columns[None, :]) & ((columns < begin)[None, :] | same)


def _kernel(shape, keys, causal, prefix, interpret, head_shards, length_shards):
    _, heads, length, _ = shape
    if prefix is not None:
        mask = _PrefixMask(length, prefix)
    else:
        mask = masks.CausalMask((length, keys)) if causal else masks.FullMask((length, keys))
    block, block_keys = _block(length // length_shards), _block(keys)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block_keys,
        block_kv_compute=block_keys,
        block_q_dkv=block,
        block_kv_dkv=block_keys,
        block_kv_dkv_compute=block_keys,
        block_q_dq=block,
        block_kv_dq=block_keys,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=head_shards,
        q_seq_shards=length_shards,
        interpret=interpret,
        residual_checkpoint_name=ATTENDED,
    )


def _block(length: int) -> int:
    """The largest block up to _BLOCK, in whole lanes, that divides a length."""
    return max(size for size in range(_LANES, _BLOCK + 1, _LANES) if length % size == 0)


def _padded(x: jax.Array, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % _LANES)
    return jnp.pad(x, widths)
