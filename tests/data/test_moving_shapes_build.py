"""Moving Shapes: building is repeatable, resumable, and fails with one line."""

import errno
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import pytest

from jvlmm.data import moving_shapes
from jvlmm.data.moving_shapes import dataset
from jvlmm.errors import ConfigError, DataError

SMALL = moving_shapes.MovingShapesOptions(
    train_clips=8,
    train_images=2,
    validation_clips=0,
    validation_images=0,
    test_clips=4,
    test_images=0,
    test_hard_clips=3,
    test_hard_images=0,
)


def digest(root):
    """Hash of every annotation and media file, by path."""
    skipped = ("dataset_info.json",)  # holds the date of the build
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in skipped)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_seed_gives_identical_files_for_any_number_of_workers(tmp_path):
    moving_shapes.build(tmp_path / "a", SMALL, workers=1)
    moving_shapes.build(tmp_path / "b", SMALL, workers=3)
    moving_shapes.build(tmp_path / "c", replace(SMALL, seed=1))
    first, second, other = (digest(tmp_path / name) for name in "abc")
    assert first == second
    assert any(first[path] != other.get(path) for path in first if path.endswith(".mp4"))
    load = [list(moving_shapes.load(tmp_path / name, "train")) for name in "ac"]
    assert [e.answer for e in load[0]] != [e.answer for e in load[1]]


def test_building_again_changes_nothing(tmp_path):
    counts = moving_shapes.build(tmp_path, SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert moving_shapes.build(tmp_path, SMALL) == counts
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_other_options_are_refused(tmp_path):
    moving_shapes.build(tmp_path, SMALL)
    before = digest(tmp_path)
    with pytest.raises(DataError, match="other options.*another folder"):
        moving_shapes.build(tmp_path, replace(SMALL, crf=20))
    assert digest(tmp_path) == before


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        moving_shapes.build(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("failing", ["write_media", "_write_records", "_write_json"])
def test_a_full_disk_is_one_line_and_the_next_build_is_whole(tmp_path, monkeypatch, failing):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(dataset, failing, full)
        with pytest.raises(DataError, match="No space left on device.*free some space") as caught:
            moving_shapes.build(tmp_path / "out", SMALL)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no Moving Shapes here"):
        moving_shapes.load(tmp_path / "out", "train")
    moving_shapes.build(tmp_path / "out", SMALL)
    moving_shapes.build(tmp_path / "clean", SMALL)
    assert digest(tmp_path / "out") == digest(tmp_path / "clean")


@pytest.mark.parametrize("limit", [300, 5_000], ids=["encoder", "records"])
def test_bytes_refused_by_the_system_are_one_line(tmp_path, limit):
    """The real thing: no file may grow beyond the limit, which a clip or only the records exceed."""
    code = (
        "import resource, sys\n"
        "from jvlmm.data import moving_shapes\n"
        "from jvlmm.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "options = moving_shapes.MovingShapesOptions(\n"
        "    train_clips=0, train_images=80, validation_clips=0, validation_images=0,\n"
        "    test_clips=0, test_images=0, test_hard_clips=0, test_hard_images=0)\n"
        "try: moving_shapes.build(sys.argv[1], options)\n"
        "except DataError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "out", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "could not be written" in done.stdout


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="writable folder"):
        moving_shapes.build(tmp_path / "file" / "out", SMALL)


def test_a_damaged_dataset_is_one_line(tmp_path):
    moving_shapes.build(tmp_path, SMALL)
    for record in (tmp_path / "records").rglob("*.array_record*"):
        record.unlink()
    with pytest.raises(DataError, match="cannot be read.*build again"):
        moving_shapes.load(tmp_path, "train")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json"):
        moving_shapes.load(tmp_path, "train")


def test_loading_by_type_limit_slice_and_in_another_process(tmp_path):
    moving_shapes.build(tmp_path, SMALL)
    everything = moving_shapes.load(tmp_path, "train")
    spatial = moving_shapes.load(tmp_path, "train", question_types=["position", "boxes"])
    assert [e.id for e in spatial] == [e.id for e in everything if e.question_type in ("position", "boxes")]
    assert [e.id for e in everything[2:5]] == [everything[k].id for k in (2, 3, 4)]
    assert len(moving_shapes.load(tmp_path, "train", limit=3)) == 3
    assert ForkingPickler.loads(ForkingPickler.dumps(everything))[-1] == everything[-1]
    assert all(e.media[0].path.startswith(str(tmp_path)) for e in everything)
    json.dumps(everything[0].to_dict())
    with pytest.raises(IndexError):
        everything[len(everything)]


def test_unknown_names_are_refused(tmp_path):
    moving_shapes.build(tmp_path, SMALL)
    with pytest.raises(DataError, match="'dev'.*train, test, test_hard"):
        moving_shapes.load(tmp_path, "dev")
    with pytest.raises(DataError, match="'colour'.*attribute"):
        moving_shapes.load(tmp_path, "train", question_types=["colour"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 60}, "size=60"),
        ({"fps": 3}, "fps=3"),
        ({"train_clips": -1}, "train_clips=-1"),
        ({"scenes": moving_shapes.SceneOptions(min_shapes=4, max_shapes=2)}, "scenes.max_shapes=2"),
        ({"scenes": moving_shapes.SceneOptions(min_seconds=4.3)}, "scenes.min_seconds=4.3"),
        ({"scenes": moving_shapes.SceneOptions(directions=6)}, "scenes.directions=6"),
        ({"scenes": moving_shapes.SceneOptions(lattice_pixels=0)}, "scenes.lattice_pixels=0"),
        ({"scenes": moving_shapes.SceneOptions(max_shape_pixels=18)}, "scenes.max_shape_pixels=18"),
        ({"scenes": moving_shapes.SceneOptions(speeds=(7, 10))}, "scenes.speeds"),
    ],
)
def test_impossible_options_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        moving_shapes.MovingShapesOptions(**change)


def test_larger_frames_and_four_shapes(tmp_path):
    scenes = moving_shapes.SceneOptions(min_shapes=4, max_shapes=4, directions=8)
    moving_shapes.build(tmp_path, replace(SMALL, size=112, fps=8, scenes=scenes))
    scene = moving_shapes.load(tmp_path, "train")[0].meta["scene"]
    assert scene["size"] == 112 and len(scene["tracks"]) == 4
    boxes = [box for track in scene["tracks"] for box in track["boxes"] if box]
    assert {box[2] - box[0] for box in boxes} <= {18, 27}
    assert all(value % 9 == 0 for box in boxes for value in box)  # the lattice of 7 pixels, grown with the frame


def test_needs_no_tensorflow_and_no_jax(tmp_path):
    code = (
        "import sys\nfrom jvlmm.data import moving_shapes as m\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "zero = {f'{s}_{k}': 0 for s in ('validation', 'test', 'test_hard') for k in ('clips', 'images')}\n"
        "m.build(sys.argv[1], m.MovingShapesOptions(train_clips=2, train_images=1, **zero))\n"
        "print(len(m.load(sys.argv[1], 'train')) > 0, {'tensorflow', 'jax', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True set()\n", done.stderr
