"""What a GRPO stage compiles for its devices, for `jvlmm plan`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.data.groups import GroupBatch, abstract_groups, completion_places
from jvlmm.models.config import ModelConfig
from jvlmm.objectives.distillation import DistillationConfig
from jvlmm.recipes.recipe import Program
from jvlmm.recipes.shapes import model_shape
from jvlmm.rollout.groups_ahead import AbstractRollout
from jvlmm.sharding.batches import batch_shardings
from jvlmm.sharding.estimate import Estimate, device_bytes
from jvlmm.sharding.rules import laid_out
from jvlmm.training.completions import group_log_probs, teacher_words
from jvlmm.training.estimate import update_estimate
from jvlmm.training.flops import decode_flops, group_flops, prefill_flops, vision_flops
from jvlmm.training.policy_preparation import OtherModel, PreparedPolicy, other_model

if TYPE_CHECKING:
    from jvlmm.recipes.reinforcing import GRPO


def policy_programs(stage: "GRPO", policy: PreparedPolicy, media: bool) -> Iterator[Program]:
    """Of a step at its largest, with media or of text alone.

    What the others need stays in memory beside each: parameters in training, moments, reference model and teacher. Of
    decoding, what goes between devices is counted for one token.
    """
    state, base = policy.training.shapes, policy.base(policy.training.shapes.params)
    others = device_bytes(base) if stage.objective.beta and stage.lora is None else 0
    other = None
    if stage.teaching is not None and stage.teaching.model:
        other = other_model(model_shape(stage.teaching.model), policy)
        others += device_bytes(other.shapes)
    if stage.teaching is not None and stage.teaching.has_weights:
        others += device_bytes(jax.tree.map(lambda x: x.update(dtype=jnp.float32), policy.trained(state.params)))
    frame = stage.vision.frame_pixels // policy.config.vision.patch_size**2 if media else None
    beside = others + device_bytes(state if policy.converts else state.opt_state)
    yield from _rollout_programs(stage, policy, frame, beside)
    yield from _update_programs(stage, policy, frame, others, other)


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


@dataclass(frozen=True)
class _Update:
    """The shapes of an update's batches on its mesh, and what its programs have in common."""

    stage: "GRPO"
    policy: PreparedPolicy
    frame: int | None  # patches
    others: int  # bytes of a device beside the training state

    @property
    def common(self) -> dict[str, int]:
        return {"devices": self.policy.meshes.training.size, "samples": self.stage.update.rows}

    @property
    def beside(self) -> int:
        """Bytes beside a forward pass, which takes parameters alone."""
        return device_bytes(self.policy.training.shapes) + self.others - device_bytes(self.params)

    @property
    def params(self) -> Any:
        return self.policy.base(self.policy.training.shapes.params)

    @property
    def tower(self) -> float:
        """FLOPs of the tower, forwards; 0 where it is not trained, for then its features are kept."""
        stage, vision = self.stage, self.policy.config.vision
        if stage.tower_frozen or self.frame is None:
            return 0.0
        return vision_flops(vision, stage.vision.patch_buckets[-1], self.frame)

    def decoder(self, places: int, config: ModelConfig | None = None) -> float:
        """FLOPs of the decoder, the policy's or another one, forwards, with completions of so many tokens."""
        stage = self.stage
        sizes = stage.length_buckets[-1], places, stage.group.size
        return stage.update.rows * group_flops((config or self.policy.config).text, *sizes)

    def batch(
        self, places: int | None = None, given: Sequence[str] = (), top_k: int | None = None, media: bool = False
    ) -> GroupBatch:
        """With media where the tower is trained, or asked for; else with their features."""
        stage, config, mesh = self.stage, self.policy.config, self.policy.meshes.training
        sizes = stage.group.size, places or stage.sampling.max_tokens, self.frame, media or not stage.tower_frozen
        marked = ["offline"] * stage.group.offline + ["truncated"] * stage.group.skip_truncated
        return self.laid_out(abstract_groups(stage.batch(mesh), config, *sizes, given, top_k, marked))

    def laid_out(self, arrays: Any) -> Any:
        return laid_out(arrays, batch_shardings(arrays, self.policy.meshes.training, self.stage.rules))

    def trace(self, program: Any, *arguments: Any, **named: Any) -> jax.stages.Traced:
        with jax.set_mesh(self.policy.meshes.training):
            return program.trace(*arguments, **named)

    def estimate(self, batch: GroupBatch) -> Estimate:
        return update_estimate(self.policy.training, self.policy.config, batch, self.frame or 0, self.stage.rules)

    def forward_estimate(self, batch: GroupBatch, config: ModelConfig, params: Any) -> Estimate:
        """Of a pass without gradients by a model of this shape."""
        whole = update_estimate(self.policy.training, config, batch, self.frame or 0, self.stage.rules)
        return replace(whole, parameters=device_bytes(params), optimizer=0, gradients=0)


def _update_programs(
    stage: "GRPO", policy: PreparedPolicy, frame: int | None, others: int, other: OtherModel | None
) -> Iterator[Program]:
    """`other` is the model that teaches, where it is not the policy's own."""
    of, training, longest = _Update(stage, policy, frame, others), policy.training, stage.sampling.max_tokens
    old = stage.update.off_policy or stage.objective.kl_place == "reward"
    given = ["old_log_probs"] * old + ["reference_log_probs"] * bool(stage.objective.beta)
    forward = partial(partial, config=policy.config, temperature=stage.sampling.temperature)
    top_k = None if stage.teaching is None else stage.teaching.lesson.top_k
    if given:
        log_probs = jax.jit(forward(group_log_probs))
        yield Program(
            f"{stage.name}.log_probs",
            lambda: of.trace(log_probs, of.params, batch=of.batch()),
            lambda: of.estimate(of.batch()),
            model_flops=of.decoder(longest) + of.tower,
            passes=1,
            resident=of.beside,
            **of.common,
        )
    if stage.teaching is not None:
        teacher, params = policy.config, of.params
        vocab = None
        if other is not None:
            teacher, params, vocab = other.config, other.shapes, policy.config.text.vocab_size
        words = jax.jit(partial(forward(teacher_words, top_k=top_k, places=longest, vocab=vocab), config=teacher))
        places = completion_places(stage.teaching.hindsight.max_tokens + longest)
        read = partial(of.batch, places, media=other is not None)
        shape = stage.update.rows, stage.group.size
        starts = of.laid_out(jax.ShapeDtypeStruct(shape, jnp.int32))
        support = {}
        if isinstance(stage.teaching.lesson, DistillationConfig) and stage.teaching.lesson.support == "student":
            support["words"] = of.laid_out(jax.ShapeDtypeStruct((*shape, longest, top_k), jnp.int32))
            students = jax.jit(forward(teacher_words, top_k=top_k, places=longest))
            yield Program(
                f"{stage.name}.support",
                lambda: of.trace(students, of.params, batch=of.batch(), starts=starts),
                lambda: of.forward_estimate(of.batch(), policy.config, of.params),
                model_flops=of.decoder(longest) + of.tower,
                passes=1,
                resident=of.beside,
                **of.common,
            )
        yield Program(
            f"{stage.name}.teacher",
            lambda: of.trace(words, params, batch=read(), starts=starts, **support),
            lambda: of.forward_estimate(read(), teacher, params),
            model_flops=of.decoder(places, teacher) + of.tower,
            passes=1,
            resident=of.beside + device_bytes(of.params) - device_bytes(params),
            **of.common,
        )
    has_backward = "vision" not in training.freeze or "vision" in training.adapted
    tower_passes = 3 if "vision" not in training.freeze else 1 + has_backward
    passes, decoder = 2 if "decoder" in training.freeze else 3, of.decoder(longest)
    yield Program(
        f"{stage.name}.update",
        lambda: of.trace(training.step, training.shapes, of.batch(longest, given, top_k)),
        lambda: of.estimate(of.batch(longest, given, top_k)),
        model_flops=passes * decoder + tower_passes * of.tower,
        recomputed_flops=decoder + of.tower * has_backward if stage.remat in ("full", "offload") else 0.0,
        resident=others,
        **of.common,
    )
