"""The batch both sides are measured on, as plain NumPy arrays: neither side's framework is imported here."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from jvlmm.data.positions import mrope_positions
from jvlmm.models.config import ModelConfig

ARRAYS, SIZES = "batch.npz", "workload.json"


@dataclass(frozen=True)
class Workload:
    """One clip a row, a question after it and an answer; rows differ in length.

    280 x 392 pixels give 20 x 28 patches, of which windows of 8 x 8 leave a remainder in both directions.
    """

    frames: int = 8
    height: int = 280
    width: int = 392
    text_tokens: tuple[int, ...] = (96, 72)  # of each row, the clip apart
    answer_tokens: int = 48  # the last of them, which carry loss
    new_tokens: int = 64  # decoded from the cache

    def save(self, folder: Path) -> None:
        (folder / SIZES).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> "Workload":
        return Workload(**json.loads((folder / SIZES).read_text()))

    def grid(self, config: ModelConfig) -> tuple[int, int, int]:
        """(t, h, w) of a clip in patches."""
        side = config.vision.patch_size
        return self.frames // config.vision.temporal_patch_size, self.height // side, self.width // side

    def sizes(self, config: ModelConfig) -> dict[str, object]:
        """What the figures were measured on, for the report."""
        grid = self.grid(config)
        patches = int(np.prod(grid)) * len(self.text_tokens)
        visual = patches // config.vision.spatial_merge_size**2
        return {
            **asdict(self),
            "rows": len(self.text_tokens),
            "patches": patches,
            "visual_tokens": visual,
            "tokens": visual + sum(self.text_tokens),
        }


@dataclass(frozen=True)
class Arrays:
    """The batch, right-padded to its longest row.

    B rows of one clip each, L tokens, n patches a clip.
    """

    tokens: np.ndarray  # int32 [B, L]
    positions: np.ndarray  # int32 [B, 3, L], 0 on padding
    lengths: np.ndarray  # int32 [B]
    answers: np.ndarray  # bool [B, L], the tokens to learn
    pixels: np.ndarray  # uint8 [B, n, patch_dim], in the order of transformers' processors
    grid: np.ndarray  # int32 [3], of every clip in patches

    def save(self, folder: Path) -> None:
        np.savez(folder / ARRAYS, **vars(self))

    @staticmethod
    def load(folder: Path) -> "Arrays":
        with np.load(folder / ARRAYS) as stored:
            return Arrays(**stored)


def small_workload(workload: Workload) -> Workload:
    """The same in seconds, to try the command: one short clip a row."""
    return replace(workload, frames=4, height=84, width=140, text_tokens=(20, 12), answer_tokens=6, new_tokens=8)


def make_arrays(workload: Workload, config: ModelConfig, seed: int = 0) -> Arrays:
    """Random pixels and words: speed depends on shapes alone."""
    rng = np.random.default_rng(seed)
    grid, special = workload.grid(config), config.tokens
    features = int(np.prod(grid)) // config.vision.spatial_merge_size**2
    rows = len(workload.text_tokens)
    lengths = np.array([features + text for text in workload.text_tokens], np.int32)
    tokens = np.full((rows, lengths.max()), special.pad, np.int32)
    positions = np.zeros((rows, 3, lengths.max()), np.int32)
    answers = np.zeros(tokens.shape, bool)
    words = min(special.image, special.video, special.vision_start, special.vision_end, special.pad, *special.eos)
    for row, length in enumerate(lengths):
        before = workload.text_tokens[row] // 4
        row_tokens = rng.integers(0, words, length).astype(np.int32)
        row_tokens[before - 1], row_tokens[before + features] = special.vision_start, special.vision_end
        row_tokens[before : before + features] = special.video
        tokens[row, :length] = row_tokens
        positions[row, :, :length] = mrope_positions(row_tokens, [grid], [1.0], special, config.vision)[0]
        answers[row, length - workload.answer_tokens : length] = True
    pixels = rng.integers(0, 256, (rows, int(np.prod(grid)), config.vision.patch_dim), np.uint8)
    return Arrays(tokens, positions, lengths, answers, pixels, np.array(grid, np.int32))
