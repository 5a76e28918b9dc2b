"""Building Moving Shapes in a folder: media files, records, and a description that says they are complete.

<folder>/dataset.json        options, counts, form and scene of every question in order; written last
<folder>/videos/*.mp4        H.264
<folder>/images/*.png
<folder>/records/            TFDS array_record: scenes and questions of every split
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import av

from jvlmm.data.moving_shapes.annotate import annotate
from jvlmm.data.moving_shapes.options import SPLITS, MovingShapesOptions
from jvlmm.data.moving_shapes.render import write_media
from jvlmm.data.moving_shapes.scene import Scene, scene_to_dict
from jvlmm.errors import DataError

FORMAT_VERSION = 7  # raised whenever equal options would give other data
DESCRIPTION = "dataset.json"
_MARKER = ".incomplete"  # present from the first file to the last
_PARTS = ("videos", "images", "records")
_BLOCK = 256  # scenes annotated, then drawn, at once

Counts = dict[str, dict[str, Any]]


def build(out_dir: str | Path, options: MovingShapesOptions | None = None, workers: int = 2) -> Counts:
    """Build the dataset and return, per split, the number of clips, images and questions (also by type).

    A folder that already holds the same dataset is left as it is; one whose build was interrupted is
    built anew. `workers` threads draw and encode; they do not change the result. Raises DataError
    where the folder holds something else or cannot be written.
    """
    root, options = Path(out_dir), options or MovingShapesOptions()
    identity = {"format": FORMAT_VERSION, "options": json.loads(json.dumps(options.to_dict()))}
    existing = read_description(root) if (root / DESCRIPTION).exists() else None
    if existing is not None:
        if {key: existing.get(key) for key in identity} == identity:
            return existing["counts"]
        raise DataError(
            f"{root}: holds Moving Shapes built with other options; choose another folder or delete this one"
        )
    try:
        _prepare_folder(root)
        counts, questions = _write_parts(root, options, workers)
        _write_json(root / DESCRIPTION, {**identity, "counts": counts, "questions": questions})
        (root / _MARKER).unlink()
    except (OSError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            f"{root}: the dataset could not be written ({reason}); "
            "free some space or choose a writable folder, and build again"
        ) from error
    return counts


def read_description(root: Path) -> dict[str, Any]:
    """The contents of dataset.json. Raises DataError where there is none or it is damaged."""
    try:
        return json.loads((root / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise DataError(f"{root}: no Moving Shapes here; run `jvlmm data build moving-shapes --out {root}`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{root / DESCRIPTION}: cannot be read ({error}); delete the folder and build again") from error


def _prepare_folder(root: Path) -> None:
    """Make an empty folder; remove what an interrupted build of ours left, refuse anybody else's files."""
    root.mkdir(parents=True, exist_ok=True)
    if (root / _MARKER).exists():
        for part in _PARTS:
            shutil.rmtree(root / part, ignore_errors=True)
    elif any(root.iterdir()):
        raise DataError(f"{root}: is not empty and holds no Moving Shapes; choose another folder")
    (root / _MARKER).touch()
    for part in _PARTS:
        (root / part).mkdir()


def _write_parts(root: Path, options: MovingShapesOptions, workers: int) -> tuple[Counts, dict[str, list]]:
    """Counts by split, and the form and scene of every question: what is chosen by needs no reading of records."""
    counts: Counts = {}
    scenes: dict[str, list[dict[str, str]]] = {}
    questions: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for split in SPLITS:
            clips, images = options.counts(split)
            if clips + images == 0:
                continue
            scenes[split], questions[split] = _write_split(root, options, split, pool)
            types = Counter(record["question_type"] for record in questions[split])
            numbers = {"clips": clips, "images": images, "questions": types.total()}
            counts[split] = {**numbers, "types": dict(sorted(types.items()))}
    _write_records(root, scenes, questions)
    return counts, {split: [(r["form"], r["scene"]) for r in records] for split, records in questions.items()}


def _write_split(root: Path, options: MovingShapesOptions, split: str, pool: Executor):
    """Write the media of a split block by block; its scenes and questions as they are to be stored."""

    def write(scene: Scene) -> None:
        write_media(scene, root / scene.media, options.fps, options.crf)

    scenes, questions = [], []
    annotated = annotate(options, split)
    while block := list(islice(annotated, _BLOCK)):
        list(pool.map(write, [scene for scene, _ in block]))
        scenes += [{"scene": _compact(scene_to_dict(scene))} for scene, _ in block]
        questions += [{**record, "cited": _compact(record["cited"])} for _, records in block for record in records]
    return scenes, questions


def _write_records(root: Path, scenes: Mapping[str, Iterable], questions: Mapping[str, Iterable]) -> None:
    from jvlmm.data.moving_shapes import builder

    builder.write(root / "records", scenes, questions)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(_compact(value) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
