"""Reinforcement learning on a small scale: drawn clips, a new model, rewards; killed and resumed to the bit."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_processes import finish, kill_after, start, write_model

from jvlmm.config import apply_overrides
from jvlmm.data.moving_shapes import MovingShapesOptions, build
from jvlmm.data.rejections import Rejections
from jvlmm.errors import ConfigError, DataError
from jvlmm.objectives.profiles import PROFILES
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.record_list import RecordList
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import Source, open_sources
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.hindsight_writing import HindsightOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.training.teaching import TEACHING_PROFILES, TeachingOptions

CONFIG = """
from jvlmm.data.loader import PipelineOptions
from jvlmm.judges.own import Own
from jvlmm.judges.rules import Rules
from jvlmm.objectives.profiles import PROFILES
from jvlmm.objectives.visd import VISDConfig
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.record_list import RecordList
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.hindsight_writing import HindsightOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.training.teaching import TeachingOptions
from jvlmm.video.budget import PixelOptions

DATA, REWARD, MODEL = {data!r}, {reward!r}, {model!r}
VISION = VisionOptions(pixels=PixelOptions(784, 3136, 784, 3136), timestamps="{{:.0f}}s", workers=0)


def recipe():
    return Recipe(
        name="small",
        workdir="unused",
        stages=(
            GRPO(
                model=MODEL,
                sources=(Source(DATA, question_types=("attribute", "position")), Source({extra!r})),
                steps=5,
                prompts=4,
                length_buckets=(320,),
                group=GroupOptions(size=3),
                objective=PROFILES["ema_grpo"],
                rewards=RewardOptions(terms=(RewardTerm("mine", REWARD + ":length"),)),
                sampling=SamplingOptions(max_tokens=8, temperature=1.0),
                update=UpdateOptions(rows=2, updates=2),
                teaching=TeachingOptions(VISDConfig(anneal_steps=6), hindsight=HindsightOptions(judge={judge})),
                vision=VISION,
                optimizer=OptimizerOptions(learning_rate=1e-3),
                evaluation=(Source(DATA, split="test", limit=3), Source({broken!r})),
                evaluate_every=4,
                checkpoint_every=2,
                export_dtype="float32",
            ),
        ),
    )
"""
REWARD = """
calls = 0


def length(completion, example):
    global calls
    calls += 1
    if calls % 10 == 0:
        raise RuntimeError("the tenth call")
    return len(completion) / 100
"""
STABLE = """
def length(completion, example):
    return len(completion) / 100
"""
ROWS = (
    {"id": "unusable", "question": "How many?", "answer": "many", "answer_type": "number"},
    {"id": "lost", "question": "What moves?", "answer": "A", "answer_type": "mcq", "options": ["a circle", "a square"]},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips, a list with a row whose gold answer is no number and one whose video is not there, and rewards."""
    folder = tmp_path_factory.mktemp("grpo")
    counts = {f"{split}_{kind}": 0 for split in ("validation", "test_hard") for kind in ("clips", "images")}
    build(folder / "data", MovingShapesOptions(train_clips=4, train_images=1, test_clips=2, test_images=0, **counts))
    lost = {**ROWS[1], "media": [{"type": "video", "path": "lost.mp4"}]}
    (folder / "extra.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROWS[0], lost)))
    (folder / "broken.jsonl").write_text("{broken\n{}\n")
    (folder / "failing.py").write_text(REWARD)
    (folder / "stable.py").write_text(STABLE)
    write_model(folder / "model")
    return folder


def write_config(folder: Path, reward: str, judge: str = "Rules()") -> Path:
    path = folder / f"with_{reward}"
    fields = {
        "data": folder / "data",
        "model": folder / "model",
        "broken": folder / "broken.jsonl",
        "extra": folder / "extra.jsonl",
        "reward": folder / reward,
    }
    path.write_text(CONFIG.format(judge=judge, **{name: str(value) for name, value in fields.items()}))
    return path


def metrics(workdir: Path) -> list[dict]:
    """The lines of the stage, without what depends on the clock."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    clocks = ("time", "seconds", "data_wait", "per_s", "compiles", "step_time", "mfu")
    return [
        {name: value for name, value in record.items() if not any(clock in name for clock in clocks)}
        for record in records
        if record["stage"] == "grpo"
    ]


def figures(workdir: Path) -> list[dict]:
    """Those of steps, not of evaluations."""
    return [record for record in metrics(workdir) if "loss" in record]


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def rollouts(workdir: Path) -> list[dict]:
    lines = (workdir / "predictions/grpo.rollouts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, finish(start(write_config(folder, "stable.py"), workdir))


def test_a_run_leaves_what_its_contract_names(finished):
    workdir, result = finished
    assert [record["step"] for record in figures(workdir)] == [1, 2, 3, 4, 5]
    first, *_, last = figures(workdir)
    assert min(first["kl"], last["kl"]) > 0 and first["sampler_gap"] < 1e-4 and first["reward_failures"] == 0
    assert {"reward/mine", "reward/accuracy", "reward/format", "truncated", "entropy", "clipped_high"} < set(first)
    taught = [record["step"] for record in figures(workdir) if "visd/weight" in record]
    assert taught == [1, 2, 3] and first["teacher/known"] == 1 and "teacher/strength" not in last
    listed = [json.loads(line) for line in (workdir / "predictions/grpo.weights.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in listed] == [0, 1, 2] and len(listed[0]["weights"]) == len(listed[0]["tokens"])
    evaluations = [record for record in metrics(workdir) if "eval/overall" in record]
    assert [record["step"] for record in evaluations] == [4, 5]
    predicted = [json.loads(line) for line in (workdir / "predictions/grpo.000005.jsonl").read_text().splitlines()]
    assert len(predicted) == 5 and sum("error" in line for line in predicted) == 2, "rows that are no examples count"
    listed = rollouts(workdir)
    assert len(listed) == 5 * 4 * 3 and [line["step"] for line in listed[::12]] == [1, 2, 3, 4, 5]
    for line in listed:
        parts = 0.9 * line["parts"]["accuracy"] + 0.1 * line["parts"]["format"] + line["parts"]["mine"]
        assert line["reward"] == pytest.approx(parts) and line["tokens"] <= 8
    best = json.loads((workdir / "models/grpo-best.json").read_text())
    assert best["step"] in (4, 5)
    for name in ("models/grpo/model.safetensors", "models/grpo-best/config.json", "checkpoints/grpo"):
        assert (workdir / name).exists(), name


def test_rows_that_cannot_be_used_are_listed_with_their_reason(finished):
    lines = map(json.loads, (finished[0] / "rejected.jsonl").read_text().splitlines())
    reasons = {line["id"]: line["reason"] for line in lines}
    assert set(reasons) <= {"unusable", "lost"} and reasons, reasons
    assert "many" in reasons.get("unusable", "many") and "lost.mp4" in reasons.get("lost", "lost.mp4")


def test_a_run_killed_twice_repeats_everything_to_the_bit(folder, finished, tmp_path):
    config = write_config(folder, "stable.py")
    for step in (1, 3):
        kill_after(start(config, tmp_path), step, lambda: steps_logged(tmp_path))
    finish(start(config, tmp_path))
    assert figures(tmp_path) == figures(finished[0])
    assert rollouts(tmp_path) == rollouts(finished[0])
    name = "models/grpo/model.safetensors"
    assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_rewards_that_raise_on_every_tenth_call_are_counted(folder, tmp_path):
    """The policy is the judge, and this one writes no verdicts."""
    finish(start(write_config(folder, "failing.py", "Own(max_tokens=8, prompt_tokens=1024)"), tmp_path))
    failures = [record["reward_failures/mine"] for record in figures(tmp_path) if "reward_failures/mine" in record]
    assert sum(failures) == 6 and len(figures(tmp_path)) == 5  # of 60 calls
    assert [record["judge/failed"] for record in figures(tmp_path) if "judge/failed" in record] == [1, 1, 1]
    assert figures(tmp_path)[0]["teacher/known"] == 1, "the answer is"


def test_a_reward_file_that_does_not_compile_is_refused_at_start(folder, tmp_path):
    (folder / "broken.py").write_text("def length(completion, example):\n    return (\n")
    process = start(write_config(folder, "broken.py"), tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "broken.py, line 2" in err and not (tmp_path / "models").exists(), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": SamplingOptions(max_tokens=8)}, "sampling.temperature=0: greedy"),
        ({"sampling": SamplingOptions(max_tokens=8, temperature=1, seed=3)}, "sampling.seed=3 has no effect"),
        ({"prompts": 8, "update": UpdateOptions(rows=4, updates=3)}, "update.updates=3 does not divide the 2"),
        ({"feature_bytes": 1 << 20}, "feature_bytes=1048576 has no effect while the tower is trained"),
        ({"optimizer": OptimizerOptions(freeze=("vision",)), "feature_bytes": 1}, "freeze vision and merger"),
        ({"teaching": TeachingOptions(), "objective": PROFILES["tw_grpo"]}, "both weigh tokens"),
        ({"teaching": TEACHING_PROFILES["sdft"], "objective": PROFILES["grpo"]}, "objective.beta has no effect"),
        (
            {"teaching": TeachingOptions(hindsight=HindsightOptions(shuffled=True)), "prompts": 1},
            "teaching.hindsight.shuffled takes the lines of another question",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GRPO(**options)


def test_a_fixed_length_is_the_most_tokens_that_are_sampled():
    """Dr. GRPO's constant; a length of one's own stays."""
    stage = GRPO(objective=PROFILES["dr_grpo"], sampling=SamplingOptions(max_tokens=77, temperature=1.0))
    assert stage.learnt_objective == replace(PROFILES["dr_grpo"], max_length=77)
    own = replace(PROFILES["dr_grpo"], max_length=5)
    assert replace(stage, objective=own).learnt_objective == own
    assert replace(stage, objective=PROFILES["grpo"]).learnt_objective == PROFILES["grpo"]


def test_a_teacher_that_knows_no_more_of_any_row_stops_the_run(tmp_path):
    """Before a model is loaded: this one is not there."""
    rows = [{"id": f"row{k}", "question": "What?", "answer": "A", "answer_type": "text"} for k in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(str(tmp_path / "rows.jsonl"))
    stage = GRPO(name="taught", model=str(tmp_path), sources=(source,), teaching=TEACHING_PROFILES["opsd"])
    message = r"taught.sources \(.*rows.jsonl\): none of 3 rows .* 'row2' does not have a response.*give the row one"
    with pytest.raises(DataError, match=message):
        stage.run(Run(tmp_path / "run", seed=0))
    (tmp_path / "rows.jsonl").write_text(json.dumps({**rows[0], "response": "It is A"}) + "\n" + json.dumps(rows[1]))
    stage._check_known(open_sources(Run(tmp_path / "run", seed=0), (source,), Rejections(None)))


def test_controls_of_hindsight_are_options_of_the_command_line():
    stage = GRPO(teaching=TeachingOptions())
    changed = apply_overrides(stage, ["teaching.hindsight.shuffled=true", "teaching.hindsight.right=0.5"])
    assert changed.teaching.hindsight == HindsightOptions(shuffled=True, right=0.5)
    alone = apply_overrides(stage, ["teaching.hindsight.lines=()"])
    assert alone.teaching.hindsight == HindsightOptions(())


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match="group.size=1: rollouts of a prompt are compared; sample at least 2"):
        GroupOptions(size=1)


def test_steps_that_are_done_again_replace_their_rollouts(tmp_path):
    """Line separators inside a text, and a line torn by a kill, are no obstacles."""
    path = tmp_path / "predictions/rollouts.jsonl"
    first, records = RecordList(path), lambda step, *texts: ({"step": step, "text": text} for text in texts)
    for step in (1, 2, 3):
        first(step, records(step, f"{step} a\u2028b", "\x85"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "te')
    RecordList(path)(3, records(3, "again"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3] and lines[-1]["text"] == "again"
    assert os.listdir(path.parent) == ["rollouts.jsonl"]
