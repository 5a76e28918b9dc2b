"""What of a configuration may change when a run is resumed, and why the rest may not."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jvlmm.config import config_diff
from jvlmm.errors import ConfigError

Progress = Literal["new", "begun", "done"]

_ALWAYS = re.compile(  # nothing of the result depends on these
    r"log_every|checkpoint_every|checkpoints\..+|max_nonfinite_steps|wandb_project|profile(\..+)?|feature_bytes"
    r"|pipeline\.(?!shuffle).+|vision\.(workers|cache_bytes)"
)
_ON_THE_WAY = re.compile(  # what comes after the checkpoint follows the new value
    r"steps|accumulation|evaluate_every|optimizer\.(learning_rate|end_learning_rate|warmup_steps|schedule|b1|b2|eps)"
    r"|mesh(\..+)?|rules\..+|remat|attention|rollout\..+|export_dtype"
)
_NUMBERS = re.compile(r"optimizer\.(clip_norm|weight_decay)")  # from one number to another
_SHAPES = re.compile(r"update\.rows|length_buckets|vision\.patch_buckets")  # of GRPO, whose prompts keep their order
MAY_CHANGE = (
    "steps, accumulation, the cadence of logs, checkpoints and evaluations, checkpoints.*, workers and threads, the "
    "learning rate and its schedule, clip_norm, the mesh, remat, and in GRPO rollout.* and the rows of an update; "
    "everything of a stage that has not begun"
)


def progress_of(folder: Path, stage: str) -> Progress:
    """How far a stage has come in a run directory."""
    if (folder / "stages" / f"{stage}.json").is_file():
        return "done"
    steps = folder / "checkpoints" / stage
    begun = steps.is_dir() and any(path.name.isdigit() for path in steps.iterdir())
    return "begun" if begun else "new"


def is_claimed(folder: Path) -> bool:
    """Whether a run directory holds something that belongs to its configuration: a stage's result, or a checkpoint."""
    stages, checkpoints = folder / "stages", folder / "checkpoints"
    if stages.is_dir() and any(path.suffix == ".json" for path in stages.iterdir()):
        return True
    return checkpoints.is_dir() and any(progress_of(folder, path.name) != "new" for path in checkpoints.iterdir())


def changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted path → (old, new) of two configurations in their JSON form.

    Raises ConfigError that names what may not change in this directory, and why.
    """
    changed = config_diff(old, new)
    refused = list(_refused(folder, old, new, changed))
    if refused:
        names = ", ".join(path for path, _ in refused[:4]) + (", …" if len(refused) > 4 else "")
        raise ConfigError(
            f"{folder}: holds a run of another configuration ({names}): {refused[0][1]}. On resuming may change: "
            f"{MAY_CHANGE}. Choose another --workdir, or delete this one"
        )
    return changed


def _refused(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], changed: Mapping[str, tuple[Any, Any]]
) -> Iterator[tuple[str, str]]:
    """(path, why) of what may not change."""
    before, after = ({stage["name"]: stage for stage in config["stages"]} for config in (old, new))
    for path, values in changed.items():
        top, _, rest = path.partition(".")
        if top == "name":
            continue
        if top != "stages":
            yield path, "what was done so far depends on it"
            continue
        name, _, option = rest.partition(".")
        progress = progress_of(folder, name)
        if progress == "new":
            continue
        if name not in after:
            yield path, f"stage {name!r} is {progress}, and no longer there"
        elif _ALWAYS.fullmatch(option):
            continue
        elif progress == "done":
            yield path, f"stage {name!r} is done, and would not be done again"
        elif _NUMBERS.fullmatch(option) and not all(values):
            yield path, "it would add a part to the optimiser's state, or take one away"
        elif not (
            _ON_THE_WAY.fullmatch(option)
            or _NUMBERS.fullmatch(option)
            or (_SHAPES.fullmatch(option) and _same_limits(before.get(name, {}), after[name]))
        ):
            yield path, f"what stage {name!r} has learnt so far depends on it"


def _same_limits(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two GRPO stages take the same prompts: the shapes of the update may differ, what is too long may not."""

    def limits(stage: Mapping[str, Any]) -> Any:
        buckets, rows = stage["vision"]["patch_buckets"], stage["update"]["rows"]
        return stage["length_buckets"][-1], buckets[-1] // rows if buckets else None

    return "GRPO" in (old.get("_type"), new.get("_type")) and limits(old) == limits(new)
