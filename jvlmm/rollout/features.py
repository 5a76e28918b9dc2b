"""Visual features of prompts, made once for each distinct image or video, and kept while the tower does not change."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Sized
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.data.batch import BatchOptions
from jvlmm.data.sequence import Sequence
from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.models.vision_inputs import VisionBuckets, build_vision_inputs
from jvlmm.video.clip import Patches


class VisualFeatures:
    """Features in host memory, under what was seen: two files of equal pixels are one.

    What is asked for together is encoded once. Beyond that, up to `max_bytes` stay for the next time, those of the
    longest unused go first; `forget` when the tower has changed.
    """

    def __init__(self, config: ModelConfig, options: BatchOptions, max_bytes: int = 0):
        """`options` give the shapes that the tower is compiled for."""
        self._config, self._options, self._max_bytes = config, options, max_bytes
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self.encoded = 0  # media that the tower has seen
        self.asked = 0  # media that were asked for

    @property
    def bytes(self) -> int:
        """What is kept."""
        return sum(features.nbytes for features in self._kept.values())

    def forget(self) -> None:
        """Drop everything."""
        self._kept.clear()

    def of(self, params: Any, prompts: Sized[Sequence]) -> list[np.ndarray]:
        """For each prompt [m, D] of the compute dtype, in the order of its placeholders; [0, D] without media."""
        together: dict[bytes, np.ndarray] = {}
        found = [[self._of_medium(params, patches, together) for patches in prompt.patches] for prompt in prompts]
        for key in together:
            self._kept[key] = together[key]
            self._kept.move_to_end(key)
        while self._kept and self.bytes > self._max_bytes:
            self._kept.popitem(last=False)
        nothing = np.zeros((0, self._config.text.hidden_size), jnp.dtype(self._config.dtype))
        return [np.concatenate([nothing, *of_prompt]) for of_prompt in found]

    def _of_medium(self, params: Any, patches: Patches, together: dict[bytes, np.ndarray]) -> np.ndarray:
        key = hashlib.blake2b(np.ascontiguousarray(patches.pixels), person=repr(patches.grid).encode()[:16]).digest()
        self.asked += 1
        if key not in together:
            together[key] = self._kept[key] if key in self._kept else self._encode(params, patches)
        return together[key]

    def _encode(self, params: Any, patches: Patches) -> np.ndarray:
        self.encoded += 1
        options = self._options
        buckets = VisionBuckets(options.patch_buckets, options.frame_patches) if options.patch_buckets else None
        vision, (rows,) = build_vision_inputs(
            [patches.pixels], [patches.grid], self._config.vision, buckets, options.fold
        )
        return np.asarray(_encode(params, self._config, vision))[rows]


@partial(jax.jit, static_argnames=("config",))
def _encode(params: Any, config: ModelConfig, vision: Any) -> jax.Array:
    return encode_vision(params, config, vision)
