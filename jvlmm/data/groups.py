"""Prompts and several completions of each → one batch, in which every prompt stands once."""

from collections.abc import Sequence as Sized
from dataclasses import dataclass, replace

import flax.struct
import jax
import numpy as np

from jvlmm.data.batch import Batch, BatchOptions, abstract_batch, collate
from jvlmm.data.sequence import Sequence
from jvlmm.errors import DataError
from jvlmm.models.config import ModelConfig
from jvlmm.models.shared_prefix import SharedPrefix
from jvlmm.models.vision_inputs import VisionInputs

_SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of a prompt, as tokens."""

    tokens: np.ndarray  # int32 [C], the end-of-sequence token included where one was drawn
    log_probs: np.ndarray  # float32 [C], of the sampler at its temperature
    entropies: np.ndarray  # float32 [C] in nats, of the sampler's distribution at temperature 1
    finished: bool  # False where the limit on tokens cut it
    offline: bool = False  # written by another policy: log_probs and entropies are 0 and say nothing


@flax.struct.dataclass
class TeacherWords:
    """What a teacher holds of the tokens of rollouts: of the sampled ones, and of K others at each place."""

    ids: np.ndarray  # int32 [B, G, C, K], the teacher's top-K tokens, or the student's where the lesson names these
    logits: np.ndarray  # float32 [B, G, C, K], of these
    own_logits: np.ndarray  # float32 [B, G, C], of the sampled tokens
    log_probs: np.ndarray  # float32 [B, G, C], of the sampled tokens
    known: np.ndarray  # bool [B, G], rollouts of which it knew more than the student
    strength: np.ndarray  # float32 [B], of its opinion in this update, the same for all


@flax.struct.dataclass
class GroupBatch:
    """B prompts with G completions each; rows are [prompt, its padding, completion 1 and its padding, …].

    P places of the prompt, C of each completion, L = P + G·C. Completions of a prompt do not see one another.
    """

    tokens: np.ndarray  # int32 [B, L]
    positions: np.ndarray  # int32 [B, 3, L], 0 on padding; those of a completion go on from the prompt's
    segment_ids: np.ndarray  # int32 [B, L], 1 on tokens, 0 on padding
    visual_index: np.ndarray  # int32 [B, L], row of the visual features, -1 on text and padding
    prompt_lengths: np.ndarray  # int32 [B], 0 in rows of padding
    completion_mask: np.ndarray  # bool [B, G, C], the tokens that were drawn
    sampler_log_probs: np.ndarray  # float32 [B, G, C], 0 on padding
    advantages: np.ndarray  # float32 [B, G]
    rollout_mask: np.ndarray  # bool [B, G], False for rows of padding
    prompt_weights: np.ndarray  # float32 [B]
    vision: VisionInputs | None  # all media, for a tower that is trained
    features: np.ndarray | None  # see `with_features`, for one that is not; None where no row has media
    old_log_probs: np.ndarray | None = None  # float32 [B, G, C] of the policy that sampled; None where it is this one
    reference_log_probs: np.ndarray | None = None  # float32 [B, G, C]
    offline: np.ndarray | None = None  # bool [B, G], rollouts that another policy wrote; None where there can be none
    truncated: np.ndarray | None = None  # bool [B, G], rollouts cut off, where these are not learnt; else None
    teacher: TeacherWords | None = None

    @property
    def prefix(self) -> SharedPrefix:
        """How its rows are laid out."""
        _, group, completion = self.completion_mask.shape
        return SharedPrefix(self.tokens.shape[1] - group * completion, group, completion)


def collate_groups(
    prompts: Sized[Sequence],
    rollouts: Sized[Sized[Rollout]],
    options: BatchOptions,
    config: ModelConfig,
    features: Sized[np.ndarray] | None = None,
    max_tokens: int | None = None,
) -> GroupBatch:
    """Join up to `options.batch_size` prompts with their rollouts, the same number for each; advantages are 0 yet.

    Args:
        options: of the prompts; completions come in powers of two from 16, and at the most in `max_tokens`.
        features: as of `with_features`; the media themselves stay away then.

    Raises DataError when a prompt, or all of them, exceed the buckets.
    """
    group = len(rollouts[0])
    places = completion_places(max(len(rollout.tokens) for row in rollouts for rollout in row), max_tokens)
    if features is None:
        batch, joined = collate(prompts, options, config), None
    else:
        batch, joined = with_features(prompts, features, options, config)
    rows, length = batch.tokens.shape
    shape = rows, group, places
    tokens, positions = np.full(shape, config.tokens.pad, np.int32), np.zeros(shape, np.int32)
    mask, log_probs = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for row, (prompt, of_prompt) in enumerate(zip(prompts, rollouts, strict=True)):
        for number, rollout in enumerate(of_prompt):
            place = row, number, slice(len(rollout.tokens))
            tokens[place], mask[place] = rollout.tokens, True
            log_probs[place] = rollout.log_probs
            positions[place] = prompt.next_position + np.arange(len(rollout.tokens))
    flat = lambda x: x.reshape(rows, group * places)  # noqa: E731
    every_axis = np.broadcast_to(flat(positions)[:, None], (rows, 3, group * places))
    return GroupBatch(
        tokens=np.concatenate([batch.tokens, flat(tokens)], axis=1),
        positions=np.concatenate([batch.positions, every_axis], axis=2),
        segment_ids=np.concatenate([batch.segment_ids, flat(mask).astype(np.int32)], axis=1),
        visual_index=np.concatenate([batch.visual_index, np.full((rows, group * places), -1, np.int32)], axis=1),
        prompt_lengths=(batch.segment_ids > 0).sum(axis=1).astype(np.int32),
        completion_mask=mask,
        sampler_log_probs=log_probs,
        advantages=np.zeros((rows, group), np.float32),
        rollout_mask=np.broadcast_to(np.arange(rows)[:, None] < len(prompts), (rows, group)).copy(),
        prompt_weights=np.ones(rows, np.float32),
        vision=batch.vision,
        features=joined,
    )


def completion_places(longest: int, max_tokens: int | None = None) -> int:
    """Places for completions of up to `longest` tokens: a power of two from 16, and no more than `max_tokens`."""
    places = max(_SMALLEST_BUCKET, 1 << (longest - 1).bit_length())
    return places if max_tokens is None else max(longest, min(places, max_tokens))


def abstract_groups(
    options: BatchOptions,
    config: ModelConfig,
    group: int,
    completion: int,
    frame_patches: int | None,
    tower_trained: bool,
    given: Sized[str] = (),
    top_k: int | None = None,
    marked: Sized[str] = (),
) -> GroupBatch:
    """ShapeDtypeStructs of the largest batch; see `batch.abstract_batch`.

    `given` names the log-probs it holds, `marked` those of `offline` and `truncated` that it has; with `top_k` it has a
    teacher's words.
    """
    batch = abstract_batch(options, config, frame_patches)
    rows, length = batch.tokens.shape
    total = length + group * completion
    struct = jax.ShapeDtypeStruct
    integers, each = struct((rows, total), np.int32), (rows, group, completion)
    teacher = None
    if top_k is not None:
        numbers, words = struct(each, np.float32), (*each, top_k)
        best = struct(words, np.int32), struct(words, np.float32)
        teacher = TeacherWords(*best, numbers, numbers, struct((rows, group), bool), struct((rows,), np.float32))
    return GroupBatch(
        tokens=integers,
        positions=struct((rows, 3, total), np.int32),
        segment_ids=integers,
        visual_index=integers,
        prompt_lengths=struct((rows,), np.int32),
        completion_mask=struct(each, bool),
        sampler_log_probs=struct(each, np.float32),
        advantages=struct((rows, group), np.float32),
        rollout_mask=struct((rows, group), bool),
        prompt_weights=struct((rows,), np.float32),
        vision=batch.vision if tower_trained else None,
        features=None if tower_trained or batch.vision is None else abstract_features(options, config),
        teacher=teacher,
        **{name: struct(each, np.float32) for name in given},
        **{name: struct((rows, group), bool) for name in marked},
    )


def abstract_features(options: BatchOptions, config: ModelConfig) -> jax.ShapeDtypeStruct:
    """What `with_features` joins at the most."""
    size = options.patch_buckets[-1] // config.vision.spatial_merge_size**2 // options.shards
    shards = (options.shards,) if options.shards > 1 else ()
    return jax.ShapeDtypeStruct((*shards, size, config.text.hidden_size), config.dtype)


def with_features(
    prompts: Sized[Sequence],
    features: Sized[np.ndarray],
    options: BatchOptions,
    config: ModelConfig,
    rows: Sized[int] | None = None,
) -> tuple[Batch, np.ndarray | None]:
    """The batch of prompts without their media, and all features one after another, padded to a bucket.

    Those are [M, D] of the compute dtype, with shards [shards, M, D] of the rows of each; None where no prompt has any.

    Args:
        features: of each prompt, [m, D] in the order of its placeholders.
        rows: of the prompts in the batch, without decreasing; None for 0, 1, …

    Raises DataError when a prompt, or all of them, exceed the buckets.
    """
    rows = range(len(prompts)) if rows is None else rows
    bare = [replace(p, patches=(), visual_index=np.full_like(p.visual_index, -1)) for p in prompts]
    batch = collate(bare, options, config, rows)
    if not sum(map(len, features)):
        return batch, None
    merged, shards = config.vision.spatial_merge_size**2, options.shards
    owners = [row * shards // options.batch_size for row in rows]
    total = int(np.bincount(owners, [len(of) for of in features]).max())
    buckets = [size // merged // shards for size in options.patch_buckets] or [1 << (total - 1).bit_length()]
    if total > buckets[-1]:
        raise DataError(
            f"{total * merged} patches of {len(prompts)} prompts exceed the largest of batch.patch_buckets="
            f"{options.patch_buckets}, of which {shards} devices have equal shares; add a larger bucket"
        )
    size = next(size for size in buckets if size >= total)
    joined = np.zeros((shards, size, features[0].shape[1]), features[0].dtype)
    visual_index, ends = batch.visual_index.copy(), [0] * shards
    for row, owner, prompt, of_prompt in zip(rows, owners, prompts, features, strict=True):
        start, ends[owner] = ends[owner], ends[owner] + len(of_prompt)
        joined[owner, start : ends[owner]] = of_prompt
        index = np.where(prompt.visual_index >= 0, prompt.visual_index + start, -1)
        visual_index[row, : prompt.length] = index
    return batch.replace(visual_index=visual_index), joined if shards > 1 else joined[0]


def separate_rows(prompt: Sequence, rollouts: Sized[Rollout]) -> list[Sequence]:
    """The usual layout, for comparison: the prompt, with its media, once for every completion."""
    rows = []
    for number, rollout in enumerate(rollouts):
        length = len(rollout.tokens)
        following = np.broadcast_to(prompt.next_position + np.arange(length, dtype=np.int32), (3, length))
        rows.append(
            Sequence(
                id=f"{prompt.id}/{number}",
                tokens=np.concatenate([prompt.tokens, rollout.tokens]).astype(np.int32),
                positions=np.concatenate([prompt.positions, following], axis=1),
                loss_mask=np.concatenate([np.zeros(prompt.length, bool), np.ones(length, bool)]),
                visual_index=np.concatenate([prompt.visual_index, np.full(length, -1, np.int32)]),
                patches=prompt.patches,
                next_position=prompt.next_position + length,
            )
        )
    return rows
