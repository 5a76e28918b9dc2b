"""Visual features of prompts, made once for each distinct image or video, and kept while the tower does not change."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence as Sized
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions
from jvlmm.data.sequence import Sequence
from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.models.vision_inputs import build_vision_inputs, build_vision_shards
from jvlmm.sharding.batches import Devices, fetched
from jvlmm.video.clip import Patches


class VisualFeatures:
    """Features in host memory, under what was seen: two files of equal pixels are one.

    What is asked for together is encoded once. Beyond that, up to `max_bytes` stay for the next time, those of the
    longest unused go first; `forget` when the tower has changed.
    """

    def __init__(self, config: ModelConfig, options: BatchOptions, max_bytes: int = 0, mesh: Mesh | None = None):
        """`options` give the shapes of one prompt. Of several devices on a `mesh`, each encodes another medium."""
        self._config, self._options, self._max_bytes = config, options, max_bytes
        self._devices = Devices.of(mesh, config.rules)
        self._encoders = math.prod(self._devices.shards)
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
        keys = [[_key(patches) for patches in prompt.patches] for prompt in prompts]
        media = dict(zip(chain(*keys), chain(*(prompt.patches for prompt in prompts)), strict=True))
        self.asked += sum(map(len, keys))
        found = {key: self._kept[key] for key in media if key in self._kept}
        missing = [key for key in media if key not in found]
        self.encoded += len(missing)
        for start in range(0, len(missing), self._encoders):
            chosen = missing[start : start + self._encoders]
            found |= zip(chosen, self._encode(params, [media[key] for key in chosen]), strict=True)
        for key in media:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while self._kept and self.bytes > self._max_bytes:
            self._kept.popitem(last=False)
        nothing = np.zeros((0, self._config.text.hidden_size), jnp.dtype(self._config.dtype))
        return [np.concatenate([nothing, *(found[key] for key in of)]) for of in keys]

    def _encode(self, params: Any, media: Sized[Patches]) -> list[np.ndarray]:
        """Of as many media as there are devices that encode, or fewer."""
        options, config = self._options, self._config
        buckets = options.vision_buckets
        if self._devices.mesh is None:
            (patches,) = media
            single = [patches.pixels], [patches.grid]
            vision, (rows,) = build_vision_inputs(*single, config.vision, buckets, options.fold)
            return [np.asarray(encode(params, config, vision))[rows]]
        each = [[patches] for patches in media] + [[]] * (self._encoders - len(media))
        pixels, grids = ([[getattr(p, name) for p in of] for of in each] for name in ("pixels", "grid"))
        vision, rows = build_vision_shards(pixels, grids, config.vision, buckets, options.fold)
        with self._devices.in_use():
            features = fetched(encode(params, config, self._devices.put_media(vision)))
        features = features.reshape(self._encoders, -1, features.shape[-1])
        return [of_device[index] for of_device, (index,) in zip(features, rows[: len(media)], strict=False)]


def _key(patches: Patches) -> bytes:
    """Equal for equal pixels in equal shapes."""
    return hashlib.blake2b(np.ascontiguousarray(patches.pixels), person=repr(patches.grid).encode()[:16]).digest()


@partial(jax.jit, static_argnames=("config",))
def encode(params: Any, config: ModelConfig, vision: Any) -> jax.Array:
    """`encode_vision` compiled."""
    return encode_vision(params, config, vision)
