"""What steers the decoding of a token: a pure pair of a state and a step. Plain decoding is the pair without either."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import flax.struct
import jax

from jvlmm.data.batch import Batch
from jvlmm.models import qwen2_5_vl
from jvlmm.models.cache import KVCache, Stores, cache_from_prompt
from jvlmm.models.config import ModelConfig


@flax.struct.dataclass
class Prompts:
    """A batch of prompts as it was read."""

    tokens: jax.Array  # int32 [B, L]
    segment_ids: jax.Array  # int32 [B, L], 0 is padding
    kept: Stores  # keys and values [B, H_kv, L, head_dim] of every layer, as `qwen2_5_vl.read_prompts` gives them
    logits: jax.Array  # float32 [B, V], of the first token to draw
    keys: jax.Array  # PRNG key [B]


class Controller(Protocol):
    """A frozen, hashable dataclass: programs are compiled for each that differs."""

    def fitted(self, batch: Batch, config: ModelConfig) -> "Controller":
        """The controller for the static sizes of this batch, read on the host."""

    def begin(self, prompts: Prompts, config: ModelConfig, capacity: int) -> tuple[KVCache, Any]:
        """A cache with places for `capacity` further tokens, and the state before the second token."""

    def step(
        self, params: Any, config: ModelConfig, tokens: jax.Array, positions: jax.Array, cache: KVCache, state: Any
    ) -> tuple[jax.Array, KVCache, Any]:
        """One more token a row, int32 [B] at int32 [B, 3]: (logits float32 [B, V], cache, state)."""

    def axes(self, state: Any) -> Any:
        """The logical axes of every array of the state: a tree like it, of tuples."""

    def report(self, state: Any) -> Mapping[str, jax.Array]:
        """Arrays to tell of each row: [B], or [B, capacity] with a column a token."""

    def describe(self) -> dict[str, Any] | None:
        """JSON-ready, for the manifest of what is decoded with it; None of plain decoding."""


@dataclass(frozen=True)
class Plain:
    """Decoding as the model was trained."""

    def fitted(self, batch: Batch, config: ModelConfig) -> "Plain":
        return self

    def begin(self, prompts: Prompts, config: ModelConfig, capacity: int) -> tuple[KVCache, tuple[()]]:
        return cache_from_prompt(*prompts.kept, prompts.segment_ids, prompts.tokens.shape[1] + capacity), ()

    def step(self, params, config, tokens, positions, cache, state):
        hidden, cache = qwen2_5_vl.decode_step(params, config, tokens, positions, cache)
        return qwen2_5_vl.logits(params, config, hidden), cache, state

    def axes(self, state: tuple[()]) -> tuple[()]:
        return ()

    def report(self, state: tuple[()]) -> dict[str, jax.Array]:
        return {}

    def describe(self) -> None:
        return None


PLAIN = Plain()
