"""A gold box in a file's pixels and a perfect answer in those shown agree wherever answers are judged or taught."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.hindsight import hindsight_of
from jvlmm.data.processor import Processor, ProcessorOptions
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.rejections import Rejections
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.judges import rules
from jvlmm.judges.verdict import Case
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions
from jvlmm.rollout.generator import Response, facts_of
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.workers import Decoder

GOLD = "[320,240,960,540]"  # of 1280x720: from a quarter to three quarters, from a third to three quarters
PERFECT = "[105,74.6667,315,168]"  # the same of 420x224
PIXELS = PixelOptions(784, 100_352, 784, 100_352)


@pytest.fixture
def make(tokenizer, config):
    """Makes processors that read files."""
    return lambda **options: Processor(
        tokenizer, config, ProcessorOptions(**{"pixels": PIXELS, "max_length": 1024, **options}), Decoder(workers=0)
    )


@pytest.fixture
def picture(tmp_path):
    """A row about a picture of 1280x720, and one of it stored turned, as telephones do."""
    path, turned = tmp_path / "wide.png", tmp_path / "turned.jpg"
    Image.fromarray(np.zeros((720, 1280, 3), np.uint8)).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((1280, 720, 3), np.uint8)).save(turned, exif=exif)
    evidence = [{"time": 0.0, "objects": {"dog": [[320, 240, 960, 540]]}}]
    row = Example("e", "Where?", GOLD, "boxes", (Media("image", str(path)),), meta={"evidence": evidence})
    return SimpleNamespace(row=row, turned=replace(row, media=(Media("image", str(turned)),)), path=str(path))


def answered(box):
    return f"<think><obj>dog</obj><box>{box}</box></think><answer>{box}</answer>"


class Scripted:
    """Answers every question with one text."""

    options, params = SamplingOptions(), {"w": np.zeros(2, np.float32)}

    def __init__(self, processor, text):
        self.processor, self.text = processor, text

    def stream(self, examples):
        for number, example in enumerate(examples):
            facts = facts_of(self.processor.prompt(example))
            yield number, Response(example.id, self.text, (1,), True, **facts)


@pytest.mark.parametrize("stored", ["row", "turned"])
def test_evaluation(make, picture, tmp_path, stored):
    row, path = getattr(picture, stored), tmp_path / "p.jsonl"
    assert evaluate(Scripted(make(), answered(PERFECT)), [row], path)["box_iou"] == pytest.approx(1, abs=1e-4)
    (record,) = map(json.loads, path.read_text().splitlines())
    assert record["gold"] == GOLD and json.loads(record["gold_as_answered"]) == pytest.approx(json.loads(PERFECT))
    assert record["coordinates"] == {"gold": "file", "raw": "shown"}
    (medium,) = record["media"]
    assert (medium["file_size"], medium["shown_size"]) == ([1280, 720], [420, 224])
    assert (record["question"], record["options"], record["times"]) == ("Where?", [], [[0.0]])
    assert evaluate(Scripted(make(), answered(GOLD)), [row], path)["box_iou"] < 0.1
    less = evaluate(Scripted(make(max_length=180), answered(PERFECT)), [row], path)
    (medium,) = json.loads(path.read_text())["media"]
    assert less["reduced"] == 1 and medium["asked_size"] == [420, 224] > medium["shown_size"]
    other = replace(row, answer="[0.25,0.333333,0.75,0.75]", coordinates="shares")
    assert evaluate(Scripted(make(), answered(PERFECT)), [other], path)["box_iou"] == pytest.approx(1, abs=1e-4)
    thousandths = Scripted(make(coordinates="per-mille"), answered("[250,333.333,750,750]"))
    assert evaluate(thousandths, [row], path)["box_iou"] == pytest.approx(1, abs=1e-4)


def test_rewards_judge_and_what_a_teacher_is_told(make, picture):
    arguments = BatchOptions(1, (1024,)), 1, 0, Rejections(None), lambda example: None
    with PromptStream([picture.row], make(), *arguments) as stream:
        ((prompt,), _) = next(stream)
    completions = [Completion(answered(PERFECT), 9), Completion(answered(GOLD), 9)]
    right, wrong = make_rewarder(RewardOptions("default"))(completions, [prompt.example] * 2).accuracy
    assert right == pytest.approx(1, abs=1e-4) and wrong < 0.1
    tagged = [answered(box).replace(f"<answer>{box}", f"<answer><box>{box}</box>") for box in (PERFECT, GOLD)]
    completions = [Completion(text, 9) for text in tagged]
    parts = make_rewarder(RewardOptions("visd"))(completions, [prompt.example] * 2).parts
    for name in ("ans_viou", "thk_box"):
        assert parts[name][0] == pytest.approx(1, abs=1e-4) and parts[name][1] < 0.1
    good, bad = rules.judge([Case(prompt.example, answered(box)) for box in (PERFECT, GOLD)])
    assert good.cause == "" and min(good.answer, good.spatial_grounding) == pytest.approx(1, abs=1e-4)
    assert bad.cause == "wrong object" and max(bad.answer, bad.spatial_grounding) < 0.1
    assert hindsight_of(prompt.example, (), "").answer == "[105,75,315,168]"


def test_what_is_learnt_stands_in_the_pixels_shown(make, picture, tokenizer):
    processor = make()
    sequence = processor.training(replace(picture.row, response=answered(GOLD)))
    said = tokenizer.decode(sequence.tokens[sequence.loss_mask])
    assert said == answered("[105,75,315,168]")
    assert "box [x1,y1,x2,y2]. Coordinates are pixels of a 420x224 picture." in tokenizer.decode(sequence.tokens)


def test_a_file_shown_in_its_own_size_is_asked_as_ever(make, tmp_path, tokenizer):
    path = tmp_path / "small.png"
    Image.fromarray(np.zeros((84, 84, 3), np.uint8)).save(path)
    row = Example("e", "Where?", "[7, 14.0,21,28]", "boxes", (Media("image", str(path)),), response="[7, 14.0,21,28]")
    text = tokenizer.decode(make().training(row).tokens)
    assert "Answer with the box [x1,y1,x2,y2].\n" in text and "Coordinates" not in text and "[7, 14.0,21,28]" in text
