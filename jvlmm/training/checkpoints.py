"""Checkpoints of the training state together with the data loader's position, through Orbax.

The only file that knows Orbax. A checkpoint is written beside its final name and renamed when complete,
so a process may die at any instant: what is listed was whole when it was written. Checksums of every array and of the
loader's position tell later whether it still is.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.sharding.fingerprint import fingerprint
from jvlmm.sharding.hosts import from_first, process_index
from jvlmm.training.state import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised


@dataclass(frozen=True)
class CheckpointOptions:
    """Which checkpoints of a stage stay on disk."""

    keep: int = 2  # the newest; the one before serves where the newest is found damaged
    keep_every: int | None = None  # and those of every so many steps for ever

    def __post_init__(self):
        for name in ("keep", "keep_every"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise ConfigError(f"checkpoints.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds."""

    step: int
    state: TrainState
    loader: Any  # JSON-able
    evaluated: bool  # False where the evaluation that was due at this step was not done


class Checkpoints:
    """The newest `keep` checkpoints of one stage in one directory; a context manager.

    With `modules` only these of the parameters are written: the others never change and come from elsewhere.

    With `asynchronous`, `save` returns when the state has been copied to the host and writing goes on
    in a thread; its failure is raised by the next `save` or by `close`.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 2,
        asynchronous: bool = False,
        modules: Sequence[str] | None = None,
        keep_every: int | None = None,
    ):
        self.directory = Path(directory).absolute()
        self._modules = modules
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_names=("state", "loader"),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    keep_period=keep_every,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=asynchronous,
                ),
            )
        except OSError as error:
            raise self._error("cannot open", error, "choose a writable directory") from error

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: Any, evaluated: bool = True) -> None:
        """Write the checkpoint of `state.step`; `loader_state` is JSON-able. An existing one is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        written = self._written(state)
        record = {"state": loader_state, "evaluated": evaluated, "arrays": fingerprint(written)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(written), loader=ocp.args.JsonSave({**record, "checksum": _checksum(record)})
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError, RuntimeError) as error:
            self._manager.reload()
            raise self._error(f"cannot save step {step} in", error, "free space there and run again") from error

    def resume(self, like: Callable[[int], TrainState]) -> Restored | None:
        """The newest checkpoint that is whole; None where there is none.

        Newer ones that are damaged are named on stderr and put aside as STEP.damaged, so that their steps can be saved
        again. Where none can be read CheckpointError says why the newest cannot, and all stay: they may belong to other
        options. That memory does not suffice is no damage, and is raised.

        Args:
          like: of a step, what `restore` takes.
        """
        unread: list[_Unreadable] = []
        restored = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(like(step), step)
                break
            except _Unreadable as error:
                unread.append(error)
        if restored is None and unread:
            raise unread[0]
        for damaged in unread:
            print(
                f"jvlmm: the checkpoint {damaged.place} is damaged ({damaged.reason}) and put aside as "
                f"{damaged.place.name}.damaged; that of step {restored.step} is used instead",
                file=sys.stderr,
                flush=True,
            )
        if unread:
            self._remove_from(restored.step + 1, _put_aside)
        self._agree(restored.step if restored else 0)
        return restored

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
        restored = self._read(like, step)
        return restored.state, restored.loader

    def delete_from(self, step: int) -> None:
        """Delete the checkpoints of this step and all later ones."""
        self._remove_from(step, partial(shutil.rmtree, ignore_errors=True))
        self._manager.reload()

    def _remove_from(self, step: int, remove: Callable[[Path], None]) -> None:
        if process_index() == 0:
            for later in (found for found in self._manager.all_steps() if found >= step):
                remove(self.directory / str(later))

    def _agree(self, step: int) -> None:
        """Go on from this step when the first process, which does, too, has put aside what is damaged."""
        first = from_first(f"resumed {self.directory}", lambda: step)
        if first != step:
            raise CheckpointError(
                f"{self.directory}: the first process goes on from step {first}, process {process_index()} from step "
                f"{step}: let all see the same files, and run again"
            )
        self._manager.reload()

    def _read(self, like: TrainState, step: int) -> Restored:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._written(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), loader=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=items)
            state, record = found["state"], dict(found["loader"])
            checksum = record.pop("checksum", None)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # what a damaged file leads to, libraries do not say
            raise _Unreadable(self.directory, step, _in_short(error)) from error
        if checksum is not None and (checksum != _checksum(record) or record["arrays"] != fingerprint(state)):
            raise _Unreadable(self.directory, step, "its checksum is not the one it was written with")
        state = state.replace(params={**like.params, **state.params})
        return Restored(step, state, record["state"], record.get("evaluated", True))

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
        return CheckpointError(f"{what} {self.directory}: {_in_short(error)}; {remedy}")


class _Unreadable(CheckpointError):
    """A checkpoint that cannot be restored; whether another one can tells whether it or the options are at fault."""

    def __init__(self, directory: Path, step: int, reason: str):
        self.place, self.reason = directory / str(step), reason
        super().__init__(
            f"cannot restore step {step} from {directory}: {reason}; it must be whole and come from the same model and "
            "optimiser options: use those, or delete the directory to begin anew"
        )


def _put_aside(checkpoint: Path) -> None:
    """Give it a name that is no step's; an earlier one of that name goes."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _in_short(error: Exception) -> str:
    """One line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _checksum(record: Any) -> str:
    """SHA-256 of JSON, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def silence_failed_writes() -> None:
    """Let a write that fails be told by `Checkpoints` alone: for good, in this process.

    Of the many files of a checkpoint each that cannot be written leaves a stack trace, on a full disk hundreds: from
    asyncio, whose tasks nobody asks any more, and from threads that find its loop closed.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    hook = sys.unraisablehook

    def silent(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            hook(unraisable)

    sys.unraisablehook = silent
