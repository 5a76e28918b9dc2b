"""What keeps numbers that are not finite out of models: a check of parameters, and a count of steps without update."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.errors import CheckpointError, JvlmmError


@jax.jit
def _finite(params: Any) -> Any:
    """Tree of bool []: whether all numbers of each array are finite."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, jnp.inexact) else True, params)


def check_finite(params: Any, what: str) -> None:
    """Raises CheckpointError that names `what` and the first arrays of the tree which hold NaN or infinity."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(_finite(params)))
    bad = ["/".join(str(getattr(key, "key", key)) for key in path) for path, finite in found if not finite]
    if bad:
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise CheckpointError(f"{what}: NaN or infinity in {names}; begin with weights that are finite")


class SkippedSteps:
    """Counts the steps in a row whose update was skipped, since loss or gradients were not finite."""

    def __init__(self, stage: str, limit: int, total_steps: int):
        """A run ends at `limit` of them, and where all of its steps were of them."""
        self._stage, self._limit = stage, min(limit, total_steps)
        self.in_a_row = 0

    def check(self, number: int, figures: Mapping[str, float]) -> None:
        """Take note of a step's metrics: `skipped` updates, and means of those that were made, if there were any.

        Raises NotFinite where the run must end.
        """
        tell = f"the loss is {figures['loss']:.4g}, the norm of the gradients {figures['grad_norm']:.4g}"
        if not math.isfinite(figures.get("param_norm", 0.0)):
            raise NotFinite(self._stage, number, number, "the update made parameters overflow")
        if figures.get("skipped") and math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"]):
            # means over the updates that were made: a policy's step has several, and only some of these were skipped
            self.in_a_row = 0
            print(
                f"jvlmm: step {number} of {self._stage}: loss or gradients of {figures['skipped']:.0f} of its updates "
                "are not finite; these are skipped",
                file=sys.stderr,
                flush=True,
            )
            return
        if not figures.get("skipped"):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            rows = f", as in the {self.in_a_row - 1} before it" if self.in_a_row > 1 else ""
            raise NotFinite(self._stage, number, number - self.in_a_row + 1, f"{tell}{rows}; no update was made")
        left = f"{self.in_a_row} in a row, the run ends at {self._limit}"
        print(
            f"jvlmm: step {number} of {self._stage}: {tell}; its update is skipped ({left})",
            file=sys.stderr,
            flush=True,
        )


class NotFinite(JvlmmError):
    """Ends a run whose numbers are not finite. `first` is the first step that met the present parameters."""

    def __init__(self, stage: str, number: int, first: int, reason: str):
        self.first = first
        self._text = (
            f"step {number} of stage {stage!r}: {reason}. Lower {stage}.optimizer.learning_rate or "
            f"{stage}.optimizer.clip_norm, which may change, and run again"
        )
        super().__init__(self._text)

    def resuming(self, step: int | None) -> "NotFinite":
        """The same, which says where the next run begins."""
        self.args = (f"{self._text}: it resumes from {'the start' if step is None else f'step {step}'}",)
        return self
