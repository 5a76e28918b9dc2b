"""The rows of Open-o3-Video's STGR files (arXiv:2510.20579), on which VISD is trained, as neutral records.

A row has `id`, `question`, `answer`, `task`, `source`, `video_path` or `image_path`, and where they are known
`key_frames` ([{"idx", "time"}]), `key_items` ({idx: {name: [box, …]}}, boxes in shares of the frame's sides),
`image_size` ([width, height]) and `reasoning_process`. Key frames become `meta["evidence"]`, whose boxes stay shares;
those of a visual question, whose answer stands in the file's pixels, become pixels of `image_size`.
"""

import ast
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jvlmm.data.records import MediaFolders, Records, example_of_row, open_data_file, records_of
from jvlmm.errors import DataError

_TASKS = {  # task: (answer type, question type)
    "General video QA MCQ": ("mcq", "general"),
    "General video QA Free-form": ("text", "general"),
    "temporal QA": ("span", "temporal"),
    "temporal QA (MCQ)": ("mcq", "temporal"),
    "temporal-spatial free-form QA": ("text", "spatio-temporal"),
    "visual QA": ("boxes", "visual"),
}
_THINK = (
    "A user asks and you answer: first reason inside <think></think>, then give the answer inside <answer></answer>. "
)
_OBJECT_AT_TIME = (
    "Let the reasoning rest on what the video shows: write every object, person or detail you mention as "
    "<obj>name</obj><box>[x1,y1,x2,y2]</box>at<t>seconds</t>s. "
)
_TIMES = "Write every time in the reasoning as <t>seconds</t>s. "
SYSTEM = {
    "visual QA": f"{_THINK}Give each object you name in the reasoning its place as <box>[x1,y1,x2,y2]</box>. "
    "The answer has the form <obj>name</obj><box>[x1,y1,x2,y2]</box>.",
    "temporal-spatial free-form QA": f"{_THINK}{_OBJECT_AT_TIME}The answer is plain text without such tags.",
    "temporal QA": f"{_THINK}Find the period of the video that answers the question. {_TIMES}"
    "The answer has the form: From <t>start</t>s to <t>end</t>s",
    "temporal QA (MCQ)": f"{_THINK}Find the period of the video that answers the question, and choose the right "
    f"option. {_TIMES}The answer has the form: From <t>start</t>s to <t>end</t>s.\nCorrect Option: LETTER",
    "General video QA MCQ": f"{_THINK}{_OBJECT_AT_TIME}The answer is the letter of the right option alone.",
    "General video QA Free-form": f"{_THINK}{_OBJECT_AT_TIME}The answer is plain text without such tags.",
}
"""What each task asks for, as the release's system prompts do; the wording is ours, the forms are theirs."""

_FOLDERS = (  # where the media of a source lie, by how its name begins
    ("gqa", "gqa"),
    ("TreeVGR", "treevgr/images"),
    ("timerft", "timerft"),
    ("videoespresso", "videoespresso/videos"),
    ("videor1", "videor1"),
    ("STR_plm", "stgr/plm/videos"),
    ("STR_", "stgr/temporal_grounding/videos"),
    ("TVG_", "tvg_r1"),
)
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$")
_LONGEST = 200  # characters of a window or a box
_LISTS = {2: "[1.5, 4]", 4: "[10, 20, 30, 40]"}
_BOX = re.compile(r"\[[^\[\]]*\]")


def read_stgr(path: str | Path, media: str | Path, root: str | Path | None = None) -> Records:
    """Read a file of rows, one JSON list. Rows that cannot be used are returned with the reason.

    `media` is the folder `videos` of the release; `root` the one that nothing opened may lie outside of, links
    resolved, by default `media`. Raises DataError when the file cannot be read.
    """
    path, wanted = Path(path), "pass a file such as STGR-RL.json"
    try:
        with open_data_file(path) as file:
            rows = json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error}); {wanted}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds no list of rows; {wanted}")
    media = Path(os.path.realpath(media))
    folders = MediaFolders(Path(os.path.realpath(media if root is None else root)), (media,))
    named = ({"id": number, **row} if isinstance(row, dict) else row for number, row in enumerate(rows, 1))
    numbered = ((f"row {number}", row) for number, row in enumerate(named, 1))
    return records_of(path, numbered, lambda row: example_of_row(_neutral(row), folders))


def _neutral(row: Any) -> dict[str, Any]:
    """A neutral record; ValueError says what is wrong with the row."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    for name in ("id", "task", "question", "answer"):
        if row.get(name) is None:
            raise ValueError(f"{name} is missing")
    task, source = row["task"], str(row.get("source", ""))
    if task not in _TASKS:
        raise ValueError(f"task is {task!r}; known: {', '.join(_TASKS)}")
    answer_type, question_type = _TASKS[task]
    question, options = row["question"], []
    answer = str(row["answer"]).strip()
    meta: dict[str, Any] = {"source": source}
    if answer_type == "mcq":
        question, options = _options(question)
        answer, _, window = answer.partition("\n")
        answer = answer.strip(" .()[]")
        if question_type == "temporal":
            meta["window"] = _window(window)
    elif answer_type == "span":
        meta["window"] = _window(answer)
        answer = json.dumps(meta["window"])
    elif answer_type == "boxes":
        answer = json.dumps([_numbers(box, 4) for box in _BOX.findall(answer)])
    if frames := row.get("key_frames"):
        sides = [1, 1] if answer_type != "boxes" else row.get("image_size")
        meta["evidence"] = _evidence(frames, row.get("key_items") or {}, sides)
    kind = "image" if row.get("image_path") else "video"
    folder = next((folder for start, folder in _FOLDERS if source.startswith(start)), "")
    record = {
        "id": row["id"],
        "question": question,
        "answer": answer,
        "answer_type": answer_type,
        "question_type": question_type,
        "options": options,
        "media": [{"type": kind, "path": str(Path(folder) / row[f"{kind}_path"])}],
        "benchmark": "stgr",
        "meta": meta,
        "coordinates": "file" if answer_type == "boxes" else "shares",
        "system": SYSTEM[task],
    }
    if thought := row.get("reasoning_process"):
        record["response"] = _response(thought, str(row["answer"]))
    return record


def _options(question: str) -> tuple[str, list[str]]:
    """(the question, its options) where these stand in its last lines, from A on."""
    lines = question.rstrip().split("\n")
    found: list[str] = []
    while lines and (match := _OPTION.match(lines[-1])):
        found.insert(0, match.group(2))
        first = match.group(1)
        lines.pop()
        if first == "A":
            break
    if len(found) < 2 or first != "A":
        raise ValueError("the question ends in no options A, B, …")
    return re.sub(r"\s*options:?\s*$", "", "\n".join(lines), flags=re.IGNORECASE).rstrip(), found


def _window(text: str) -> list[float]:
    """[start, end] in seconds."""
    start, end = _numbers(text, 2)
    if not 0 <= start < end:
        raise ValueError(f"the window {text.strip()} is none")
    return [start, end]


def _numbers(text: str, count: int) -> list[float]:
    """So many finite numbers that stand in the text as a list, "[1.5, 4]"; ValueError where it holds anything else."""
    with suppress(ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        values = [float(value) for value in ast.literal_eval(text.strip()[:_LONGEST])]
        if len(values) == count and all(map(math.isfinite, values)):
            return values
    raise ValueError(f"{text.strip()[:_LONGEST]!r} is no list of {count} numbers, such as {_LISTS[count]}")


def _evidence(frames: Any, items: Mapping[str, Any], size: Any) -> list[dict[str, Any]]:
    """Of each key frame its time and its objects, whose boxes are multiplied by the sides of `size`.

    Without a `size` objects have no boxes.
    """

    def scaled(box):
        width, height = size
        return [share * side for share, side in zip(box, (width, height) * 2, strict=True)]

    def objects(frame):
        of_frame = items.get(str(frame.get("idx")), {})
        return {name: [scaled(box) for box in boxes] if size else [] for name, boxes in of_frame.items()}

    evidence = [{"time": float(frame["time"]), "objects": objects(frame)} for frame in frames]
    if not all(math.isfinite(frame["time"]) for frame in evidence):
        raise ValueError("the time of a key frame is not finite")
    return evidence


def _response(thought: str, answer: str) -> str:
    """The assistant's turn: the thought and the answer in their tags, where they have none."""
    text = thought if "<think>" in thought else f"<think>{thought.strip()}</think>"
    return text if "<answer>" in text else f"{text}<answer>{answer.strip()}</answer>"
