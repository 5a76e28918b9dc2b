"""The device's side of rollouts: prompts read once, and slots that decode completions of them until they are refilled.

B rows hold a prompt each; G slots of every row decode completions of it. All slots write the same column at the same
time, so that a slot which has ended may begin anew while its neighbours go on. On a mesh its devices share the rows and
the key/value heads of the slots.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from jvlmm.data.batch import Batch
from jvlmm.data.positions import next_position
from jvlmm.models import qwen2_5_vl
from jvlmm.models.cache import GroupCache, Stores, cache_axes
from jvlmm.models.config import ModelConfig
from jvlmm.rollout.sampling import History, SamplingOptions, sample, tokens_seen
from jvlmm.sharding.rules import ShardingRules, constrained, row_axes


@flax.struct.dataclass
class ReadPrompts:
    """What the completions of n prompts go on from."""

    kept: Stores  # keys and values of the prompt's tokens, as in GroupCache
    valid: jax.Array  # bool [n, P]
    hidden: jax.Array  # [n, D], of the last token
    next_position: jax.Array  # int32 [n]
    seen: jax.Array | None = None  # bool [n, V], the tokens it holds, where penalties look at them


@flax.struct.dataclass
class Slots:
    """The state of B rows of G slots; what was drawn lies in the columns of the cache, T of them."""

    cache: GroupCache
    prompt_hidden: jax.Array  # [B, D]
    prompt_position: jax.Array  # int32 [B], M-RoPE position of a completion's first token, equal on the three axes
    hidden: jax.Array  # [B, G, D], of the last token
    keys: jax.Array  # PRNG key [B, G], of the completion
    lengths: jax.Array  # int32 [B, G], tokens drawn
    active: jax.Array  # bool [B, G]: the completion goes on
    tokens: jax.Array  # int32 [B, G, T]
    log_probs: jax.Array  # float32 [B, G, T], as `sampling.sample` gives them
    entropies: jax.Array  # float32 [B, G, T] in nats, at temperature 1
    prompt_seen: jax.Array | None = None  # bool [B, V], as in ReadPrompts
    counts: jax.Array | None = None  # int32 [B, G, V], of each token in the completion, where penalties look at them


def axes_of(slots: Slots) -> Slots:
    """The logical axes of every array: rows, and in the cache key/value heads, are split."""
    return jax.tree.map(row_axes, slots).replace(cache=cache_axes(slots.cache))


def _laid_out(slots: Slots, rules: ShardingRules | None) -> Slots:
    """The slots on the mesh in use, if there is one."""
    return constrained(slots, rules, axes_of(slots))


@partial(jax.jit, static_argnames=("config", "penalized"))
def read(params, config: ModelConfig, batch: Batch, features: jax.Array | None, penalized: bool = False) -> ReadPrompts:
    """Run right-padded prompts, whose visual features [M, D] the tower has made before.

    `penalized`: their tokens are kept for penalties of what is drawn.
    """
    rows = batch.tokens, batch.positions, batch.segment_ids, batch.visual_index
    hidden, kept = qwen2_5_vl.read_prompts(params, config, *rows, features)
    valid = batch.segment_ids > 0
    lengths = valid.sum(axis=-1)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    return ReadPrompts(
        kept=kept,
        valid=valid,
        hidden=jnp.take_along_axis(hidden, last, axis=1)[:, 0],
        next_position=next_position(batch.positions, lengths),
        seen=tokens_seen(batch.tokens, valid, config.text.vocab_size) if penalized else None,
    )


@partial(jax.jit, static_argnames=("config", "rows", "group", "columns"))
def empty_slots(like: ReadPrompts, config: ModelConfig, rows: int, group: int, columns: int) -> Slots:
    """B = `rows` of G = `group` idle slots for prompts as long as `like`, and completions of up to `columns` tokens."""
    stacked = not isinstance(like.kept[0], tuple)

    def prompts(x):
        return jnp.zeros((x.shape[0], rows, *x.shape[2:]) if stacked else (rows, *x.shape[1:]), x.dtype)

    def completions(x):
        *front, _, heads, _, dim = x.shape
        return jnp.zeros((*front, rows, heads, group, columns, dim), x.dtype)

    prompt_keys, prompt_values = jax.tree.map(prompts, like.kept)
    keys, values = jax.tree.map(completions, like.kept)
    drawn = lambda: jnp.zeros((rows, group, columns), jnp.float32)  # noqa: E731
    width = like.hidden.shape[-1]
    slots = Slots(
        cache=GroupCache(
            prompt_keys=prompt_keys,
            prompt_values=prompt_values,
            prompt_valid=jnp.zeros((rows, like.valid.shape[1]), bool),
            keys=keys,
            values=values,
            valid=jnp.zeros((rows, group, columns), bool),
            column=jnp.int32(0),
        ),
        prompt_hidden=jnp.zeros((rows, width), like.hidden.dtype),
        prompt_position=jnp.zeros(rows, jnp.int32),
        hidden=jnp.zeros((rows, group, width), like.hidden.dtype),
        keys=jax.vmap(jax.vmap(jax.random.key))(jnp.zeros((rows, group), jnp.uint32)),
        lengths=jnp.zeros((rows, group), jnp.int32),
        active=jnp.zeros((rows, group), bool),
        tokens=jnp.full((rows, group, columns), config.tokens.pad, jnp.int32),
        log_probs=drawn(),
        entropies=drawn(),
        prompt_seen=None if like.seen is None else jnp.zeros((rows, like.seen.shape[1]), bool),
        counts=None if like.seen is None else jnp.zeros((rows, group, like.seen.shape[1]), jnp.int32),
    )
    return _laid_out(slots, config.rules)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("slots",))
def place(slots: Slots, config: ModelConfig, prompts: ReadPrompts, rows: jax.Array) -> Slots:
    """Put prompts into rows whose slots are idle: of n prompts, number i into one of the i-th of n runs of rows.

    Args:
        rows: int32 [n], the row's place in its run; -1 for a prompt that is left out. So no prompt leaves the devices
            which have read it.
    """
    axis = 0 if isinstance(slots.cache.keys, tuple) else 1
    length = len(slots.active) // len(rows)
    chosen = jnp.arange(length) == rows[:, None]

    def put(store, new, axis=0):
        runs = store.reshape(*store.shape[:axis], len(rows), length, *store.shape[axis + 1 :])
        where = chosen.reshape(*(1,) * axis, *chosen.shape, *(1,) * (store.ndim - axis - 1))
        return jnp.where(where, jnp.expand_dims(new, axis + 1), runs).reshape(store.shape)

    cache = slots.cache
    old = cache.prompt_keys, cache.prompt_values
    keys, values = jax.tree.map(partial(put, axis=axis), old, prompts.kept)
    slots = slots.replace(
        cache=cache.replace(
            prompt_keys=keys, prompt_values=values, prompt_valid=put(cache.prompt_valid, prompts.valid)
        ),
        prompt_hidden=put(slots.prompt_hidden, prompts.hidden),
        prompt_position=put(slots.prompt_position, prompts.next_position),
        prompt_seen=None if prompts.seen is None else put(slots.prompt_seen, prompts.seen),
    )
    return _laid_out(slots, config.rules)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("slots",))
def begin(slots: Slots, config: ModelConfig, fresh: jax.Array, seeds: jax.Array, seed: jax.Array) -> Slots:
    """Let idle slots begin a completion of their row's prompt.

    Args:
        fresh: bool [B, G], the slots.
        seeds: uint32 [B, G, 2], numbers of the prompt and of the sample, on which its draws depend.
        seed: uint32 [], of the run.
    """

    def key(numbers):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), numbers[0]), numbers[1])

    keys = jax.vmap(jax.vmap(key))(seeds)
    slots = slots.replace(
        cache=slots.cache.replace(valid=slots.cache.valid & ~fresh[:, :, None]),
        hidden=jnp.where(fresh[:, :, None], slots.prompt_hidden[:, None], slots.hidden),
        keys=jnp.where(fresh, keys, slots.keys),
        lengths=jnp.where(fresh, 0, slots.lengths),
        active=slots.active | fresh,
        counts=None if slots.counts is None else jnp.where(fresh[:, :, None], 0, slots.counts),
    )
    return _laid_out(slots, config.rules)


@partial(jax.jit, static_argnames=("config", "options"), donate_argnames=("slots",))
def decode(
    params,
    config: ModelConfig,
    slots: Slots,
    options: SamplingOptions,
    banned: jax.Array,
    max_tokens: jax.Array,
    steps: jax.Array,
    enough: jax.Array,
) -> Slots:
    """Draw up to `steps` tokens in every active slot; stop early when no more than `enough` slots are active.

    A completion ends with an end-of-sequence token or its `max_tokens`-th, at most the number of columns. Of `options`
    the temperature, the filters and the penalties count; penalties need prompts that were read `penalized`. The three
    numbers are int32 [].
    """

    def unfinished(carry):
        slots, step = carry
        return (step < steps) & (slots.active.sum() > enough)

    def one_token(carry):
        slots, step = carry
        return _one_token(params, config, slots, options, banned, max_tokens), step + 1

    return jax.lax.while_loop(unfinished, one_token, (slots, jnp.int32(0)))[0]


def _one_token(params, config: ModelConfig, slots: Slots, options, banned, max_tokens) -> Slots:
    shape = slots.active.shape
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    logits = qwen2_5_vl.logits(params, config, flat(slots.hidden))
    keys = jax.vmap(jax.random.fold_in)(flat(slots.keys), flat(slots.lengths))
    history = None
    if options.penalties:
        prompt = jnp.broadcast_to(slots.prompt_seen[:, None], slots.counts.shape)
        history = History(flat(prompt), flat(slots.counts))
    tokens, log_probs = (x.reshape(shape) for x in sample(keys, logits, banned, options, history))
    entropies = entropy(logits).reshape(shape)
    active, column = slots.active, slots.cache.column

    def record(store, new):
        """Nothing where the slot is idle: what it drew before may still be there to be fetched."""
        old = jax.lax.dynamic_slice_in_dim(store, column, 1, axis=2)
        new = jnp.where(active[:, :, None], new[:, :, None], old)
        return jax.lax.dynamic_update_slice(store, new, (0, 0, column))

    positions = flat(slots.prompt_position[:, None] + slots.lengths)
    positions = jnp.broadcast_to(positions[:, None], (len(positions), 3))
    hidden, cache = qwen2_5_vl.decode_step(params, config, flat(tokens), positions, slots.cache)
    if history is not None:
        history = history.with_drawn(flat(tokens), flat(active))
        slots = slots.replace(counts=history.counts.reshape(slots.counts.shape))
    lengths = slots.lengths + active
    ended = jnp.isin(tokens, jnp.array(config.tokens.eos, jnp.int32)) | (lengths >= max_tokens)
    slots = slots.replace(
        cache=cache,
        hidden=hidden.reshape(slots.hidden.shape),
        lengths=lengths,
        active=active & ~ended,
        tokens=record(slots.tokens, tokens),
        log_probs=record(slots.log_probs, log_probs),
        entropies=record(slots.entropies, entropies),
    )
    return _laid_out(slots, config.rules)


def entropy(logits: jax.Array) -> jax.Array:
    """float32 [...] in nats: of softmax(logits), float32 [..., V]."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
