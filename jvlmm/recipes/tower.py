"""The stage that teaches a new vision tower to see, before a decoder has learnt to read its features."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.data.example import Media
from jvlmm.data.moving_shapes import scenes
from jvlmm.data.moving_shapes.cells import CLASSES, cell_targets
from jvlmm.data.processor import ProcessorOptions, decode_patches
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.models.vision_inputs import VisionInputs, build_vision_inputs
from jvlmm.objectives.detection import detection_f1, detection_loss, num_outputs
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import VisionOptions
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.training.checkpoints import CheckpointOptions, Checkpoints
from jvlmm.training.finite import check_finite
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step

_FEATURE_SIZE = 2.0  # root mean square of the features over that of the words' embeddings

Clips = list[tuple[np.ndarray, tuple[int, int, int], np.ndarray]]  # patches, their grid, the targets of their cells


@dataclass(frozen=True)
class PretrainTower:
    """Train vision tower and merger to tell, from each feature, which shapes lie there and in which boxes.

    A linear head on the features is trained along and then dropped; the decoder stays as it was. At last the features
    are brought to the size of words' embeddings: in much larger ones all that the decoder's layers add, such as
    when a feature was seen, would be lost. Runs on one device.
    The result is `models/NAME`, a Hugging Face folder, with the F1 of the shapes found in the validation split's clips.
    """

    name: str = "tower"
    model: str = "stage:new"
    data: str = "stage:data"  # a Moving Shapes folder
    steps: int = 1000
    batch_size: int = 64  # clips
    vision: VisionOptions = field(default_factory=VisionOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)  # which of them stay
    max_nonfinite_steps: int = 3  # in a row whose update is skipped, as loss or gradients are NaN; so many end the run

    def run(self, run: Run) -> dict[str, Any]:
        if jax.process_count() > 1:
            raise ConfigError(
                f"stage {self.name!r} trains on one device; run the recipe with one process until it is done"
            )
        folder = run.resolve(self.model)
        config = for_training(load_config(folder), jax.default_backend())
        with ExitStack() as stack:
            writer = stack.enter_context(MetricsWriter(run.workdir))
            checkpoints = stack.enter_context(
                Checkpoints(run.workdir / "checkpoints" / self.name, **asdict(self.checkpoints))
            )
            progress = stack.enter_context(Progress(self.name, show=("loss", "samples_per_s")))
            params, clips = load_params(folder, config), self._clips(run, folder, config, "train")
            modules = {"vision": params["vision"], "merger": params["merger"], "head": _new_head(config, run.seed)}
            optimizer = make_optimizer(self.optimizer, self.steps, tuple(modules))
            state = fit(
                create_state(modules, optimizer),
                make_train_step(lambda params, batch: _loss(params, config, batch), optimizer),
                ClipBatches(clips, config, self.batch_size, run.seed),
                FitOptions(
                    total_steps=self.steps,
                    stage=self.name,
                    log_every=self.log_every,
                    checkpoint_every=self.checkpoint_every,
                    max_nonfinite_steps=self.max_nonfinite_steps,
                ),
                writer,
                checkpoints,
                progress=progress,
            )
        trained = {**params, "vision": state.params["vision"], "merger": state.params["merger"]}
        trained = _resized(trained, config, _batch(clips[: self.batch_size], config))
        check_finite(trained, f"what stage {self.name!r} would export")
        save_checkpoint(run.workdir / "models" / self.name, trained, config, dtype="float32", source_dir=folder)
        f1 = self._f1(self._clips(run, folder, config, "validation"), config, state.params)
        return {"path": f"models/{self.name}", "steps": self.steps, "f1": f1}

    def _clips(self, run: Run, folder: Path, config: ModelConfig, split: str) -> Clips:
        """All clips of a split. ConfigError where there are none, or where they are not seen as they were drawn."""
        root = run.resolve(self.data)
        clips: Clips = []
        shown = self.vision.shown("describe", ProcessorOptions.max_length, folder)
        with self.vision.decoder() as decoder:
            for scene in scenes(root, split):
                if not scene.is_image:
                    media = Media("video", str(root / scene.media))
                    seen = decode_patches(media, decoder, shown.frames, shown.pixels, config.vision)
                    targets = cell_targets(scene)
                    features, cells = len(seen.pixels) // config.vision.spatial_merge_size**2, len(targets)
                    if features != cells:
                        raise ConfigError(
                            f"stage {self.name!r}: {features} features for {cells} cells of a clip; choose "
                            "vision.pixels and vision.frames so that frames keep their size and every step is seen"
                        )
                    clips.append((seen.pixels, seen.grid, targets))
        if not clips:
            raise ConfigError(f"{root}: the split {split!r} has no clips; build it with some")
        return clips

    def _f1(self, clips: Clips, config: ModelConfig, modules: dict[str, Any]) -> float:
        """F1 of the presence of shapes, all cells and classes together."""
        batch = _batch(clips, config)
        return round(float(jax.jit(lambda m, b: detection_f1(_outputs(m, config, b), b.targets))(modules, batch)), 4)


class ClipBatches:
    """An endless loader of batches drawn at random; batch n depends on the seed and n alone."""

    def __init__(self, clips: Clips, config: ModelConfig, batch_size: int, seed: int):
        self._clips, self._config, self._batch_size, self._seed = clips, config, batch_size, seed
        self._drawn = 0

    def __next__(self) -> tuple["CellBatch", list[int]]:
        rng = np.random.default_rng([self._seed, self._drawn])
        self._drawn += 1
        rows = rng.integers(0, len(self._clips), self._batch_size).tolist()
        return _batch([self._clips[row] for row in rows], self._config), rows

    def get_state(self) -> int:
        return self._drawn

    def set_state(self, state: int) -> None:
        self._drawn = state


@flax.struct.dataclass
class CellBatch:
    """Clips and what lies in their cells."""

    vision: VisionInputs
    rows: np.ndarray  # int32 [M]: the feature of each cell
    targets: np.ndarray  # float32 [M, frames, classes + 5]


def _batch(clips: Clips, config: ModelConfig) -> CellBatch:
    pixels, grids, targets = zip(*clips, strict=True)
    vision, rows = build_vision_inputs(pixels, grids, config.vision, fold=True)
    return CellBatch(vision, np.concatenate(rows), np.concatenate(targets))


def _new_head(config: ModelConfig, seed: int) -> dict[str, jax.Array]:
    inputs, outputs = config.vision.out_hidden_size, num_outputs(len(CLASSES), config.vision.temporal_patch_size)
    kernel = jax.random.normal(jax.random.key(seed), (inputs, outputs)) * inputs**-0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _resized(params: dict[str, Any], config: ModelConfig, batch: CellBatch) -> dict[str, Any]:
    """The model with features of `_FEATURE_SIZE` on these clips."""
    features = jax.jit(encode_vision, static_argnums=1)(params, config, batch.vision)[batch.rows]
    factor = _FEATURE_SIZE * _size(params["decoder"]["embed"]["embedding"]) / _size(features)
    last = jax.tree.map(lambda weight: weight * factor, params["merger"]["fc2"])
    return {**params, "merger": {**params["merger"], "fc2": last}}


def _size(x: jax.Array) -> jax.Array:
    """float32 []: the root mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _outputs(modules: dict[str, Any], config: ModelConfig, batch: CellBatch) -> jax.Array:
    """float32 [M, outputs of a cell]."""
    features = encode_vision(modules, config, batch.vision)[batch.rows]
    return features.astype(jnp.float32) @ modules["head"]["kernel"] + modules["head"]["bias"]


def _loss(modules: dict[str, Any], config: ModelConfig, batch: CellBatch):
    return *detection_loss(_outputs(modules, config, batch), batch.targets), {}
