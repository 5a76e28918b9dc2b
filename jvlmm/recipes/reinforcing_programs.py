"""What a GRPO stage compiles for its devices, for `jvlmm plan`."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from jvlmm.data.groups import abstract_groups
from jvlmm.recipes.recipe import Program
from jvlmm.rollout.groups_ahead import AbstractRollout
from jvlmm.sharding.batches import batch_shardings
from jvlmm.sharding.estimate import device_bytes
from jvlmm.sharding.rules import laid_out
from jvlmm.training.completions import group_log_probs
from jvlmm.training.estimate import update_estimate
from jvlmm.training.flops import decode_flops, group_flops, prefill_flops, vision_flops
from jvlmm.training.policy_preparation import PreparedPolicy

if TYPE_CHECKING:
    from jvlmm.recipes.reinforcing import GRPO


def policy_programs(stage: "GRPO", policy: PreparedPolicy, media: bool) -> Iterator[Program]:
    """Of a step at its largest, with media or of text alone.

    What the others need stays in memory beside each: parameters in training, moments, the reference model. Of decoding,
    what goes between devices is counted for one token.
    """
    state, base = policy.training.shapes, policy.base(policy.training.shapes.params)
    reference = device_bytes(base) if stage.objective.beta and stage.lora is None else 0
    frame = stage.vision.pixels.video_max_pixels // policy.config.vision.patch_size**2 if media else None
    beside = reference + device_bytes(state if policy.converts else state.opt_state)
    yield from _rollout_programs(stage, policy, frame, beside)
    yield from _update_programs(stage, policy, frame, reference)


def _rollout_programs(stage: "GRPO", policy: PreparedPolicy, frame: int | None, beside: int) -> Iterator[Program]:
    config, mesh, length = policy.rollout_config, policy.meshes.rollout, stage.length_buckets[-1]
    shapes = stage.of_prompt, frame, stage.sampling, stage.rollout, stage.group.size
    rollout = AbstractRollout(config, policy.rollout_shapes, mesh, stage.rules, *shapes)
    named = {"devices": mesh.size, "resident": beside}
    if frame is not None:
        patches = stage.of_prompt.patch_buckets[-1]
        yield Program(
            f"{stage.name}.tower",
            rollout.trace_tower,
            rollout.estimate_tower,
            samples=rollout.encoders,
            model_flops=rollout.encoders * vision_flops(config.vision, patches, frame),
            passes=1,
            **named,
        )
    yield Program(
        f"{stage.name}.prefill",
        rollout.trace_prefill,
        rollout.estimate_prefill,
        samples=rollout.readers,
        model_flops=prefill_flops(config, np.full(rollout.readers, length), 0, 0),
        passes=1,
        **named,
    )
    yield Program(
        f"{stage.name}.decode",
        rollout.trace_decode,
        rollout.estimate_decode,
        samples=stage.rollout.rows,
        model_flops=decode_flops(config, np.full(rollout.slots.active.size, length), stage.sampling.max_tokens),
        passes=stage.sampling.max_tokens,
        **named,
    )


def _update_programs(stage: "GRPO", policy: PreparedPolicy, frame: int | None, reference: int) -> Iterator[Program]:
    config, mesh, training = policy.config, policy.meshes.training, policy.training
    rows, trained = stage.update.rows, not stage.tower_frozen
    old = stage.update.off_policy or stage.objective.kl_place == "reward"
    given = ["old_log_probs"] * old + ["reference_log_probs"] * bool(stage.objective.beta)
    sizes = stage.group.size, stage.sampling.max_tokens, frame, trained

    def placed(names):
        batch = abstract_groups(stage.batch(mesh), config, *sizes, names)
        return laid_out(batch, batch_shardings(batch, mesh, stage.rules))

    def on_mesh(trace):
        with jax.set_mesh(mesh):
            return trace()

    tower = vision_flops(config.vision, stage.vision.patch_buckets[-1], frame) if trained and frame is not None else 0.0
    has_backward = "vision" not in training.freeze or "vision" in training.adapted
    decoder = rows * group_flops(config.text, stage.length_buckets[-1], stage.sampling.max_tokens, stage.group.size)
    estimate = partial(update_estimate, training, config, frame_patches=frame or 0, rules=stage.rules)
    named = {"devices": mesh.size, "samples": rows}
    if given:
        temperature = stage.sampling.temperature
        log_probs = jax.jit(partial(group_log_probs, config=config, temperature=temperature))
        params = policy.base(training.shapes.params)
        yield Program(
            f"{stage.name}.log_probs",
            lambda: on_mesh(lambda: log_probs.trace(params, batch=placed(()))),
            lambda: estimate(batch=placed(())),
            model_flops=decoder + tower,
            passes=1,
            resident=device_bytes(training.shapes) + reference - device_bytes(params),
            **named,
        )
    passes = 2 if "decoder" in training.freeze else 3
    tower_passes = 3 if "vision" not in training.freeze else 1 + has_backward
    recomputed = decoder + tower * has_backward if stage.remat in ("full", "offload") else 0.0
    yield Program(
        f"{stage.name}.update",
        lambda: on_mesh(lambda: training.step.trace(training.shapes, placed(given))),
        lambda: estimate(batch=placed(given)),
        model_flops=passes * decoder + tower_passes * tower,
        recomputed_flops=recomputed,
        resident=reference,
        **named,
    )
