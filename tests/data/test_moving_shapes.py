"""Moving Shapes: what is promised of its files, its questions and its balance."""

import math
import re
from collections import Counter, defaultdict
from fractions import Fraction

import av
import numpy as np
import pytest

from jvlmm.data import moving_shapes
from jvlmm.data.moving_shapes.annotate import annotate
from jvlmm.data.moving_shapes.questions import QUADRANTS
from jvlmm.data.moving_shapes.scene import COLOURS, DIRECTIONS
from jvlmm.errors import DataError

OPTIONS = moving_shapes.MovingShapesOptions(
    seed=3,
    train_clips=150,
    train_images=30,
    validation_clips=0,
    validation_images=4,
    test_clips=60,
    test_images=12,
    test_hard_clips=60,
    test_hard_images=12,
)
SPLITS = ("train", "test", "test_hard")
NAME = re.compile(r"(?:red|green|blue|yellow|purple|white) (?:circle|square|triangle|cross)")
TYPES = {"attribute", "count", "position", "direction", "speed", "order", "event", "span", "boxes"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    moving_shapes.build(folder, OPTIONS)
    return folder


@pytest.fixture(scope="module")
def examples(root):
    return {split: list(moving_shapes.load(root, split)) for split in SPLITS}


def decode(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_counts_and_types(root, examples):
    counts = moving_shapes.build(root, OPTIONS)
    assert list(counts) == ["train", "validation", "test", "test_hard"]
    assert (counts["train"]["clips"], counts["train"]["images"]) == (150, 30)
    assert len(list((root / "videos").iterdir())) == 150 + 60 + 60
    for split in SPLITS:
        types = Counter(example.question_type for example in examples[split])
        assert types == counts[split]["types"] and types.total() == counts[split]["questions"]
        assert set(types) == TYPES
        assert max(types.values()) <= 1.5 * min(types.values())
        assert len({example.id for example in examples[split]}) == len(examples[split])


def test_videos_are_h264_and_show_what_the_ground_truth_says(examples):
    media = {e.media[0].path: e for e in examples["test"] + examples["test_hard"] if e.media[0].type == "video"}
    for path, example in list(media.items())[::6]:
        scene = example.meta["scene"]
        with av.open(path) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == Fraction(4)
        frames = decode(path)
        assert frames.shape == (2 * scene["steps"], 84, 84, 3)
        for index, frame in enumerate(frames):
            _check_frame(frame, scene, step=index // 2)


def test_images_are_png_and_show_what_the_ground_truth_says(examples):
    media = {e.media[0].path: e for e in examples["train"] if e.media[0].type == "image"}
    assert len(media) == 30
    for path, example in media.items():
        assert path.endswith(".png")
        _check_frame(decode(path)[0], example.meta["scene"], step=0)


def _check_frame(frame, scene, step):
    """Centres of uncovered shapes have their colour, and far from every box there is only background."""
    boxes = [track["boxes"][step] for track in scene["tracks"]]
    empty = np.ones(frame.shape[:2], bool)
    for index, (track, box) in enumerate(zip(scene["tracks"], boxes, strict=True)):
        if box is None:
            continue
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= 84 and 0 <= y1 < y2 <= 84
        empty[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = False
        x, y = (x1 + x2) // 2, (y1 + y2) // 2
        if any(b and b[0] - 2 <= x < b[2] + 2 and b[1] - 2 <= y < b[3] + 2 for b in boxes[index + 1 :]):
            continue
        changed = track["recolour"] and step >= track["recolour"][0]
        colour = track["recolour"][1] if changed else track["colour"]
        seen = np.median(frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3), axis=0)
        nearest = min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())
        assert nearest == colour, (track["object"], step, seen)
    assert np.abs(frame[empty].astype(int) - scene["background"]).max(initial=0) < 40


def _tracks(example):
    return {track["object"]: track for track in example.meta["scene"]["tracks"]}


def _named(example):
    return NAME.findall(example.question)


def _asked_step(example):
    found = re.search(r"at ([\d.]+)s", example.question)
    return round(2 * float(found[1])) if found else 0


def _centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _expected_answer(example):
    """The answer worked out anew from the boxes of the ground truth alone."""
    scene, tracks, step = example.meta["scene"], _tracks(example), _asked_step(example)
    shapes = [tracks[name] for name in _named(example)]
    if example.question_type == "count":
        at_time = "visible" in example.question or " at " in example.question
        return str(sum(bool(t["boxes"][step]) for t in tracks.values()) if at_time else len(tracks))
    if example.question_type == "attribute":
        words = set(re.findall(r"\w+", example.question))
        (track,) = [t for t in tracks.values() if t["kind"] in words or t["colour"] in words]
        return track["colour"] if track["kind"] in words else track["kind"]
    if example.question_type == "position":
        x, y = _centre(shapes[0]["boxes"][step])
        assert min(abs(x - 42), abs(y - 42)) >= 8
        return QUADRANTS[2 * (y > 42) + (x > 42)]
    if example.question_type == "boxes":
        return "[{},{},{},{}]".format(*shapes[0]["boxes"][step])
    if example.question_type == "direction":
        seen = [_centre(box) for box in shapes[0]["boxes"] if box]
        signs = tuple(int(np.sign(b - a)) for a, b in zip(seen[0], seen[-1], strict=True))
        return next(name for name, way in DIRECTIONS.items() if way == signs)
    if example.question_type == "span":
        return _expected_span(example, shapes[0], scene["steps"])
    if example.question_type == "speed":
        one, two = (_pixels_per_step(track) for track in shapes)
        assert one == two or max(one, two) >= 1.6 * min(one, two) > 0
        names = [f"the {name}" for name in _named(example)]
        return ("both the same" if one else "neither moves") if one == two else names[one < two]
    events = {(e["object"], e["kind"]): e["step"] for e in scene["events"]}
    verbs = {verb: kind for kind, verb in VERBS.items()}
    if example.question_type == "event":
        (kind,) = [k for (name, k), at in events.items() if name == _named(example)[0] and at == step]
        return f"it {next(verb for verb, k in verbs.items() if k == kind)}"
    halves = example.question.rstrip("?").split(": ")[1].split(" or ")
    asked = [
        (name, next(k for v, k in verbs.items() if h.endswith(v)))
        for name, h in zip(_named(example), halves, strict=True)
    ]
    times = [events.get(key) for key in asked]
    if times == [None, None]:
        return "neither happens"
    assert None not in times
    return "both at once" if times[0] == times[1] else halves[times[0] > times[1]]


def _expected_span(example, track, steps):
    boxes = track["boxes"]
    if "visible" in example.question:
        shown = [k for k, box in enumerate(boxes) if box]
        begin, end = shown[0], shown[-1] + 1
    else:
        moves = [k for k in range(steps - 1) if boxes[k] != boxes[k + 1]]
        begin, end = moves[0], moves[-1] + 1
        end = steps if end == steps - 1 else end
    assert end - begin >= 2
    return f"<t>{begin / 2:.1f}</t>s to <t>{end / 2:.1f}</t>s"


def _pixels_per_step(track):
    seen = [_centre(box) for box in track["boxes"] if box]
    return max(round(math.dist(a, b), 3) for a, b in zip(seen, seen[1:], strict=False))


def test_every_answer_follows_from_the_ground_truth(examples):
    for example in sum(examples.values(), []):
        gold = example.options["ABCD".index(example.answer)] if example.answer_type == "mcq" else example.answer
        assert gold == _expected_answer(example) == example.meta["answer_text"], example


def test_images_are_asked_about_space_alone():
    options = moving_shapes.MovingShapesOptions(train_clips=0, train_images=60, questions_per_image=4)
    asked = {record["question_type"] for _, records in annotate(options, "train") for record in records}
    assert asked == {"attribute", "count", "position", "boxes"}


def test_options_are_four_different_texts(examples):
    for example in sum(examples.values(), []):
        assert len(set(example.options)) == len(example.options) == (4 if example.answer_type == "mcq" else 0)


def test_thoughts_are_short_end_in_the_answer_and_cite_true_boxes(examples):
    for example in sum(examples.values(), []):
        found = re.fullmatch(r"<think>(.+)</think><answer>(.+)</answer>", example.response)
        assert found and found[2] == example.answer
        assert len(found[1].split()) <= (170 if example.split == "test_hard" else 100)
        if example.answer_type == "mcq":
            assert found[1].endswith(f" {example.meta['answer_text']} {example.answer}.")
        truth = {tuple(box) for track in _tracks(example).values() for box in track["boxes"] if box}
        cited = re.findall(r"<box>\[(\d+),(\d+),(\d+),(\d+)\]</box>", found[1])
        assert {tuple(map(int, box)) for box in cited} <= truth
        assert all(name in _tracks(example) for name in re.findall(r"<obj>(.+?)</obj>", found[1]))
        assert all(all(boxes) for frame in example.meta["evidence"] for boxes in frame["objects"].values())


VERBS = {"appear": "appears", "vanish": "vanishes", "recolour": "changes colour"}
VERBS |= {"bounce": "bounces", "start": "starts moving", "stop": "stops moving"}
STEP = re.compile(r"(\d\.\d) ([a-z]+ [a-z]+) ([a-z ]+?)(?= \d\.\d |[:,.])")


def _expected_doing(track, events, step):
    """What a shape does from a step on, worked out anew from its boxes and the list of events."""
    boxes = track["boxes"]
    verbs = [VERBS[e["kind"]] for e in events if e["object"] == track["object"] and e["step"] == step]
    if verbs or not boxes[step]:
        return " and ".join(verbs) or "not there"
    last = step + 1 == len(boxes) or not boxes[step + 1]
    here, there = (step - 1, step) if last else (step, step + 1)
    if here < 0 or not boxes[here]:
        return "still"
    signs = tuple(int(np.sign(b - a)) for a, b in zip(_centre(boxes[here]), _centre(boxes[there]), strict=True))
    return next((name for name, way in DIRECTIONS.items() if way == signs), "still")


def test_timelines_say_step_by_step_what_the_boxes_show(root, examples):
    told = [e for split in SPLITS for e in examples[split] if e.question_type in ("event", "order", "span")]
    seen = Counter()
    for example in [*told, *moving_shapes.caption_examples(root, "test_hard", kinds=("caption_timeline",))]:
        tracks, timelines = _tracks(example), STEP.findall(example.response)
        assert len({name for _, name, _ in timelines}) == (2 if example.question_type == "order" else 1), timelines
        for step, name, doing in timelines:
            expected = _expected_doing(tracks[name], example.meta["scene"]["events"], int(float(step) * 2))
            assert sorted(doing.split(" and ")) == sorted(expected.split(" and ")), (example.response, step)
            seen[doing] += 1
    assert set(seen) >= {*DIRECTIONS, *VERBS.values(), "still", "not there"}


def _chance(rows):
    """Chance of the best constant guess, by form of question."""
    if rows[0].answer_type == "mcq":
        return 1 / 4
    return 1 / len({example.answer for example in rows})


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_and_no_letter_is_favoured(examples, split):
    groups = defaultdict(list)
    for example in examples[split]:
        groups[example.question_type, example.answer_type].append(example)
        groups[example.meta["form"]].append(example)
    for name, rows in groups.items():
        if rows[0].answer_type == "boxes" or (isinstance(name, tuple) and len(rows) < 40):
            continue  # boxes hardly ever repeat; few rows of several forms cannot be even to a row
        allowed = max(math.floor(len(rows) * (_chance(rows) + 0.03)), math.ceil(len(rows) * _chance(rows)))
        for texts in ([e.answer for e in rows], [e.meta["answer_text"] for e in rows]):
            assert Counter(texts).most_common(1)[0][1] <= allowed, (split, name, Counter(texts).most_common(3))


def test_prefixes_are_balanced_too(root):
    rows = moving_shapes.load(root, "test", question_types=["direction"], limit=16)
    letters = Counter(e.answer for e in rows if e.answer_type == "mcq")
    assert max(letters.values()) - min(letters.values()) <= 1


def _cues(record, option):
    """What the question's words and an option's text say when the names of shapes are hidden."""
    question, text = record["question"], option
    for mark, name in zip(("N1", "N2"), NAME.findall(question), strict=False):
        question, text = question.replace(name, mark), text.replace(name, mark)
    text = text.split()[1] if text.startswith("the N") else text
    return {text} | {f"{word}|{text}" for word in question.split(":")[-1].split()}


def test_words_alone_do_not_tell_the_answer():
    """Naive Bayes over questions and options, learnt on one half of many, is worth nothing on the other."""
    options = moving_shapes.MovingShapesOptions(train_clips=1500, train_images=0)
    forms = defaultdict(list)
    for _, records in annotate(options, "train"):
        for record in records:
            if record["answer_type"] == "mcq":
                forms[record["form"]].append(record)
    for form, records in forms.items():
        half = len(records) // 2
        seen, right = Counter(), Counter()
        for record in records[:half]:
            for letter, option in zip("ABCD", record["options"], strict=True):
                seen.update(_cues(record, option))
                right.update(_cues(record, option) if letter == record["answer"] else ())

        def worth(record, option, seen=seen, right=right):
            return sum(math.log(4 * (right[cue] + 1) / (seen[cue] + 4)) for cue in _cues(record, option))

        hits = sum(
            "ABCD"[int(np.argmax([worth(r, option) for option in r["options"]]))] == r["answer"] for r in records[half:]
        )
        share, deviation = hits / (len(records) - half), math.sqrt(0.25 * 0.75 / (len(records) - half))
        assert share <= 0.25 + 3 * deviation, (form, share)


def test_no_constant_span_does_well(examples):
    spans = [
        [float(t) for t in re.findall(r"<t>(.+?)</t>", e.answer)] for e in examples["train"] if e.answer_type == "span"
    ]
    grid = [k / 2 for k in range(9)]

    def overlap(a, b, c, d):
        return max(0.0, min(b, d) - max(a, c)) / (max(b, d) - min(a, c))

    best = max(np.mean([overlap(a, b, c, d) for c, d in spans]) for a in grid for b in grid if b > a)
    assert best < 0.5
    assert len({begin for begin, _ in spans}) >= 5


def test_captions_are_plain_and_true(root):
    captions = moving_shapes.caption_examples(root, "train", draws=2)
    assert len(captions) == 2 * (150 * 9 + 30 * 5)
    kinds = Counter()
    for example in captions[:200]:
        kinds[example.question_type] += 1
        assert example.response == example.answer and "<think>" not in example.response
        track_boxes = {tuple(box) for t in example.meta["scene"]["tracks"] for box in t["boxes"] if box}
        cited = re.findall(r"<box>\[(\d+),(\d+),(\d+),(\d+)\]</box>", example.response)
        assert {tuple(map(int, box)) for box in cited} <= track_boxes
    assert all(name.startswith("caption_") for name in kinds) and len(kinds) == 9
    assert len({example.id for example in captions}) == len(captions)


def test_captions_of_one_kind_name_what_is_there(root):
    captions = moving_shapes.caption_examples(root, "train", kinds=("caption_names",))
    assert len(captions) == 150 + 30
    for example in captions[:20]:
        names = [track["object"] for track in example.meta["scene"]["tracks"]]
        assert sorted(example.response.removesuffix(".").split(", ")) == sorted(names)
    with pytest.raises(DataError, match="caption 'caption_name' does not exist; use some of caption_objects"):
        moving_shapes.caption_examples(root, "train", kinds=("caption_name",))


def test_scenes_are_the_ground_truth_of_every_row(root):
    scenes = list(moving_shapes.scenes(root, "test"))
    assert len(scenes) == 60 + 12 and sum(scene.is_image for scene in scenes) == 12


def test_direct_answers(examples):
    example = examples["test"][0]
    assert moving_shapes.direct(example).response == example.answer
    assert example.response.startswith("<think>")


def test_explained_answers_are_the_thought_alone(examples):
    for example in examples["test"]:
        told = moving_shapes.explained(example)
        assert example.response.startswith(f"<think>{told.response}</think>") and told.response
        assert (told.question, told.options, told.answer) == (example.question, example.options, example.answer)


def test_lessons_in_letters_show_no_media_and_recite_options_with_their_letters(examples):
    for example in (e for e in examples["test"] if e.answer_type == "mcq"):
        lesson = moving_shapes.lettered(example)
        assert lesson.media == () and lesson.options == example.options
        assert lesson == moving_shapes.lettered(example) and lesson.learn == (" A", " B", " C", " D")
        for recited in lesson.response.split(", "):
            text, letter = recited.rsplit(" ", 1)
            assert example.options["ABCD".index(letter)] == text
    written = next(e for e in examples["test"] if e.answer_type == "number")
    assert moving_shapes.lettered(written).response == written.answer


def test_lessons_in_pairs_need_both_words_to_tell_an_option(examples):
    for example in examples["test"][:40]:
        lesson = moving_shapes.lettered_pairs(example)
        assert lesson == moving_shapes.lettered_pairs(example) and lesson.media == ()
        assert len(set(lesson.options)) == 4 and all(NAME.fullmatch(option) for option in lesson.options)
        for words in zip(*(option.split() for option in lesson.options), strict=True):
            assert sorted(Counter(words).values()) == [2, 2]
        for recited in lesson.response.split(", "):
            text, letter = recited.rsplit(" ", 1)
            assert lesson.options["ABCD".index(letter)] == text


def test_rows_about_the_same_clip_are_known_without_reading(root):
    for rows in (moving_shapes.load(root, "test"), moving_shapes.caption_examples(root, "test")):
        keys = {row.media: key for row, key in zip(rows, rows.media_keys, strict=True)}
        assert [keys[row.media] for row in rows] == rows.media_keys and len(set(keys.values())) == len(keys)


def test_questions_by_the_type_of_their_answer(root):
    rows = moving_shapes.load(root, "test", question_types=["count", "span"], answer_types=["number", "span"])
    assert {(row.question_type, row.answer_type) for row in rows} == {("count", "number"), ("span", "span")}


def test_open_questions_are_answered_in_words(examples):
    chosen = next(e for e in examples["test"] if e.answer_type == "mcq")
    opened = moving_shapes.open_ended(chosen)
    assert opened.response == opened.answer == chosen.meta["answer_text"]
    assert opened.options == () and opened.answer_type == "text" and opened.question == chosen.question
    written = next(e for e in examples["test"] if e.answer_type == "number")
    assert moving_shapes.open_ended(written) == moving_shapes.direct(written)


def test_hard_split_has_more_shapes_and_longer_clips(examples):
    def scenes_of(split):
        return [e.meta["scene"] for e in examples[split] if e.media[0].type == "video"]

    scenes = {split: scenes_of(split) for split in ("test", "test_hard")}
    shapes = {split: {len(s["tracks"]) for s in found} for split, found in scenes.items()}
    assert shapes == {"test": {1, 2, 3}, "test_hard": {3, 4, 5}}
    assert {s["steps"] for s in scenes["test"]} == {8}
    assert {s["steps"] for s in scenes["test_hard"]} == {12, 14, 16}
