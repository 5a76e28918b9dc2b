"""Strict overrides and the JSON form of nested frozen dataclasses."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.config import apply_overrides, config_diff, from_dict, from_json, naming_options, to_dict, to_json
from jvlmm.errors import ConfigError


@dataclass(frozen=True)
class Lora:
    rank: int = 8
    targets: tuple[str, ...] = ("q", "v")


@dataclass(frozen=True)
class Stage:
    name: str = "stage"
    steps: int = 10


@dataclass(frozen=True)
class SFTStage(Stage):
    learning_rate: float = 1e-4
    lora: Lora | None = None
    micro: int = 1
    batch: int = 4

    def __post_init__(self):
        if self.batch % self.micro:
            raise ValueError(f"batch {self.batch} must be a multiple of micro {self.micro}")


@dataclass(frozen=True)
class EvalStage(Stage):
    split: Literal["validation", "test"] = "validation"


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    shuffle: bool = True
    limit: int | None = None
    cap: float | str = "auto"
    workdir: Path = Path("runs")
    size: tuple[int, int] = (1, 2)
    weights: tuple[float, ...] = ()
    grid: tuple[tuple[int, int], ...] = ((1, 2),)
    meta: Mapping[str, Any] = field(default_factory=dict)
    lora: Lora = Lora()
    stages: tuple[Stage, ...] = (SFTStage("sft"), EvalStage("after"))


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("shuffle=false", lambda c: c.shuffle, False),
        ("limit=3", lambda c: c.limit, 3),
        ("limit=none", lambda c: c.limit, None),
        ("cap=0.5", lambda c: c.cap, 0.5),
        ("cap=auto", lambda c: c.cap, "auto"),
        ("workdir=/a=b", lambda c: c.workdir, Path("/a=b")),
        ("size=3,4", lambda c: c.size, (3, 4)),
        ("size=(3, 4)", lambda c: c.size, (3, 4)),
        ("weights=", lambda c: c.weights, ()),
        ("weights=[1, 2.5]", lambda c: c.weights, (1.0, 2.5)),
        ("grid=[[3,4],[5,6]]", lambda c: c.grid, ((3, 4), (5, 6))),
        ("meta.note=hi", lambda c: c.meta, {"note": "hi"}),
        ('meta={"a": [1]}', lambda c: c.meta, {"a": [1]}),
        ("lora.targets=q,k", lambda c: c.lora.targets, ("q", "k")),
        ("lora.targets=[q,k]", lambda c: c.lora.targets, ("q", "k")),
        ("sft.steps=100", lambda c: c.stages[0].steps, 100),
        ("stages.sft.steps=100", lambda c: c.stages[0].steps, 100),
        ("sft.learning_rate=3", lambda c: c.stages[0].learning_rate, 3.0),
        ("sft.lora.rank=2", lambda c: c.stages[0].lora, Lora(rank=2)),
        ("after.split=test", lambda c: c.stages[1].split, "test"),
    ],
)
def test_override_sets_only_its_field(override, read, expected):
    before = Recipe()
    after = apply_overrides(before, [override])
    value = read(after)
    assert value == expected
    assert type(value) is type(expected)
    changed = {path.partition(".")[0] for path in config_diff(before, after)}
    assert len(changed) == (0 if read(before) == expected else 1)
    assert before == Recipe()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", ["'sed'", "did you mean 'seed'", "lora"]),
        ("sft.stepz=1", ["'sft.stepz'", "'sft.steps'"]),
        ("stages.sfd.steps=1", ["'stages.sfd.steps'", "'stages.sft'", "after"]),
        ("rank=2", ["'rank'", "'lora.rank'"]),
        ("seed.deeper=1", ["'seed'", "single value"]),
        ("seed=1.5", ["'seed'", "'1.5'", "an integer"]),
        ("seed=__import__('os')", ["an integer"]),
        ("shuffle=maybe", ["true or false"]),
        ("size=1,2,3", ["'size'", "2 values"]),
        ("weights=1,x", ["'weights'", "'x'", "a number"]),
        ("after.split=train", ["validation, test"]),
        ("limit=many", ["an integer or none"]),
        ("lora=big", ["group of options", "lora.rank"]),
        ("sft.micro=3", ["sft: ", "multiple of micro 3"]),
        ("seed", ["path=value"]),
        ("=1", ["path=value"]),
    ],
)
def test_bad_override_names_the_option_and_the_remedy(override, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Recipe(), [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_overrides_are_checked_together_and_the_last_wins():
    config = apply_overrides(Recipe(), ["sft.micro=3", "stages.sft.batch=6", "seed=1", "seed=2"])
    assert (config.stages[0].micro, config.stages[0].batch, config.seed) == (3, 6, 2)


@pytest.mark.parametrize("pair", [["lora={}", "lora.rank=1"], ["lora.rank=1", "lora={}"]])
def test_whole_and_part_together_are_refused(pair):
    with pytest.raises(ConfigError, match="either the whole or its parts"):
        apply_overrides(Recipe(), pair)


names = st.text(min_size=1, max_size=8)
recipes = st.builds(
    Recipe,
    seed=st.integers(),
    limit=st.none() | st.integers(),
    cap=st.floats(allow_nan=False) | names,
    weights=st.lists(st.floats(allow_nan=False)).map(tuple),
    grid=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    meta=st.dictionaries(names, st.integers() | names | st.none()),
    lora=st.builds(Lora, rank=st.integers(), targets=st.lists(names).map(tuple)),
    stages=st.lists(
        st.builds(SFTStage, name=names, lora=st.none() | st.builds(Lora)) | st.builds(EvalStage, name=names)
    ).map(tuple),
)


@given(recipes)
def test_json_round_trip_is_equal_and_keeps_types(recipe):
    again = from_json(Recipe, to_json(recipe))
    json.loads(to_json(recipe), parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert again == recipe
    assert [type(stage) for stage in again.stages] == [type(stage) for stage in recipe.stages]
    assert config_diff(recipe, json.loads(to_json(recipe))) == {}


@given(st.integers(), st.floats(allow_nan=False), st.lists(st.floats(allow_nan=False)).map(tuple))
def test_override_text_round_trips(seed, rate, weights):
    text = ",".join(map(repr, weights))
    config = apply_overrides(Recipe(), [f"seed={seed}", f"sft.learning_rate={rate!r}", f"weights={text}"])
    assert (config.seed, config.weights) == (seed, weights)
    assert math.isclose(config.stages[0].learning_rate, rate) or config.stages[0].learning_rate == rate


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"sead": 1}, ["'sead'", "'seed'"]),
        ({"seed": True}, ["'seed'", "an integer"]),
        ({"lora": {"rang": 1}}, ["'lora.rang'", "'rank'"]),
        ({"stages": [{"_type": "Other"}]}, ["'Other'", "SFTStage"]),
        ({"size": [1]}, ["'size'", "2 values"]),
    ],
)
def test_from_dict_is_strict(value, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, value)
    for word in words:
        assert word in str(caught.value)


def test_from_json_refuses_what_is_not_json_and_fills_defaults():
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_json(Recipe, "{")
    assert from_json(Recipe, "{}") == Recipe()


def test_config_diff_addresses_stages_by_name():
    old, new = Recipe(), apply_overrides(Recipe(), ["sft.steps=11", "size=1,3"])
    assert config_diff(to_dict(old), new) == {"size": ([1, 2], [1, 3]), "stages.sft.steps": (10, 11)}


@dataclass(frozen=True)
class Frames:
    fps: float = 2.0
    num_frames: int | None = None

    def __post_init__(self):
        if self.fps <= 0:
            raise ConfigError(f"frames.fps={self.fps} must be above 0; with num_frames = 8 it has no effect")


@dataclass(frozen=True)
class Vision:
    frames: Frames = field(default_factory=Frames)


@dataclass(frozen=True)
class Mesh:
    fsdp: int = 1


@dataclass(frozen=True)
class Rollout:
    rows: int = 8
    mesh: Mesh = field(default_factory=Mesh)


@dataclass(frozen=True)
class Data:
    path: str
    split: str = "train"
    name: str = ""


@dataclass(frozen=True)
class Policy:
    name: str = "grpo"
    sources: tuple[Data, ...] = (Data("a.jsonl"), Data("b.jsonl", name="b"))
    vision: Vision = field(default_factory=Vision)
    mesh: Mesh = field(default_factory=Mesh)
    rollout: Rollout = field(default_factory=Rollout)
    lora: Lora | None = None


@dataclass(frozen=True)
class Whole:
    stages: tuple[Policy, ...] = (Policy(),)


def test_a_refused_value_is_named_by_the_path_that_was_typed():
    with pytest.raises(ConfigError, match=r"^grpo\.vision\.frames\.fps=0\.0 must") as caught:
        apply_overrides(Whole(), ["grpo.vision.frames.fps=0"])
    assert "with grpo.vision.frames.num_frames = 8" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("mesh.fsdp=3 is odd", "grpo.mesh.fsdp=3 is odd"),
        ("rollout.mesh.fsdp=3", "grpo.rollout.mesh.fsdp=3"),
        ("fps = 0: too few", "grpo.vision.frames.fps = 0: too few"),
        ("lora.rank=0", "grpo.lora.rank=0"),  # a group that is none so far
        ("grpo.rows=1", "grpo.rollout.rows=1"),
        ("train.jsonl, path.py and axis fsdp stay", "train.jsonl, path.py and axis fsdp stay"),
        ("fsdp=2 is one of two options of that name", "grpo.mesh.fsdp=2 is one of two options of that name"),
        ("steps=2 is no option here", "steps=2 is no option here"),
    ],
)
def test_names_in_messages_become_full_paths(said, told):
    with pytest.raises(ConfigError) as caught, naming_options(Policy(), "grpo"):
        raise ConfigError(said)
    assert str(caught.value) == told


def test_groups_in_a_tuple_are_set_by_name_by_number_and_whole():
    changed = apply_overrides(Whole(), ["grpo.sources.b.split=test", "grpo.sources.0.path=c.jsonl"])
    assert changed.stages[0].sources == (Data("c.jsonl"), Data("b.jsonl", "test", "b"))
    whole = apply_overrides(Whole(), ['grpo.sources=[{"path": "d.jsonl"}]'])
    assert whole.stages[0].sources == (Data("d.jsonl"),)


@pytest.mark.parametrize("text", ["d.jsonl", '[{"paht": "d.jsonl"}]', "[3]"])
def test_a_tuple_of_groups_says_how_it_is_written(text):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Whole(), [f"grpo.sources={text}"])
    message = str(caught.value)
    assert """grpo.sources='[{"path": "…"}]'""" in message
    assert "grpo.sources.0.path=…" in message
