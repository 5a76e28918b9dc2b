"""Checkpoints of the training state together with the data loader's position, through Orbax.

The only file that knows Orbax. A checkpoint is written beside its final name and renamed when complete,
so a process may die at any instant: what is listed is whole.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jvlmm.errors import CheckpointError
from jvlmm.training.state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The newest `keep` checkpoints of one stage in one directory; a context manager.

    With `modules` only these of the parameters are written: the others never change and come from elsewhere.

    With `asynchronous`, `save` returns when the state has been copied to the host and writing goes on
    in a thread; its failure is raised by the next `save` or by `close`.
    """

    def __init__(
        self, directory: str | Path, keep: int = 2, asynchronous: bool = False, modules: Sequence[str] | None = None
    ):
        self.directory = Path(directory).absolute()
        self._modules = modules
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_names=("state", "loader"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=asynchronous,
                ),
            )
        except OSError as error:
            raise self._error("cannot open", error, "choose a writable directory") from error

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: Any) -> None:
        """Write the checkpoint of `state.step`; `loader_state` is JSON-able. An existing one is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(self._written(state)), loader=ocp.args.JsonSave({"state": loader_state})
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError, RuntimeError) as error:
            self._manager.reload()
            raise self._error(f"cannot save step {step} in", error, "free space there and run again") from error

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Any]:
        """(state, loader state) of `step`, by default of the newest checkpoint.

        Args:
          like: TrainState of arrays or ShapeDtypeStructs; its shapes, dtypes and shardings are what comes
            back, so a checkpoint of one mesh restores onto another. Its parameters of modules that are not
            written come back as they are.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"no complete checkpoint in {self.directory}; train first or name another directory")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._written(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), loader=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            remedy = "it must come from the same model and optimiser options; use those or another directory"
            raise self._error(f"cannot restore step {step} from", error, remedy) from error
        state = restored["state"]
        return state.replace(params={**like.params, **state.params}), restored["loader"]["state"]

    def close(self) -> None:
        """Wait for writing to end."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._error("cannot save in", error, "free space there and run again") from error
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _written(self, state: TrainState) -> TrainState:
        if self._modules is None:
            return state
        return state.replace(params={name: state.params[name] for name in self._modules})

    def _error(self, what: str, error: Exception, remedy: str) -> CheckpointError:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return CheckpointError(f"{what} {self.directory}: {reason}; {remedy}")
