"""Methods of V-Reason against plain decoding over seeds."""

import json

import pytest

from jvlmm.data.moving_shapes import MovingShapesOptions, build
from jvlmm.errors import ConfigError
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.small_stages import BASE, VISION
from jvlmm.recipes.sources import Source
from jvlmm.recipes.steering_study import CompareSteering, compared, control_of
from jvlmm.rollout.control import PLAIN
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions


def figures(accuracy, tokens=10.0):
    return {"accuracy": accuracy, "output_tokens": tokens, "finished_rate": 1.0, "latency_s": 0.5}


def test_gains_are_paired_by_seed():
    table = compared({"base": [figures(0.4), figures(0.6)], "switch": [figures(0.5, 8.0), figures(0.7, 6.0)]})
    assert table["base"]["gain"] == table["base"]["gain_half_width"] == 0
    assert table["base"]["half_width"] == pytest.approx(12.706 * 0.1, abs=1e-3)  # t of 1 degree of freedom
    switch = table["switch"]
    assert (switch["accuracy"], switch["gain"], switch["gain_half_width"]) == (0.6, 0.1, 0)
    assert switch["output_tokens"] == 7 and switch["accuracy_of_seeds"] == [0.5, 0.7]


def test_methods_differ_in_mode_and_lite_alone():
    options = VReasonOptions(lr=0.02, mode="random", lite=LiteOptions(ratio=0.25))
    assert control_of("base", options) is PLAIN
    of = lambda method: control_of(method, options).options  # noqa: E731
    assert (of("switch").mode, of("switch").lite) == ("switch", None)
    assert (of("lite").mode, of("lite").lite.ratio) == ("switch", 0.25)
    assert (of("always_up").mode, of("always_up").lr, of("always_up").lite) == ("always_up", 0.02, None)
    traced = control_of("base", options, trace=True).options
    assert (traced.mode, traced.trace, traced.lite) == ("off", True, None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"methods": ("switch",)}, "must have base"),
        ({"seeds": 1}, "seeds=1"),
        ({"traced": 0}, "traced=0"),
        ({"sampling": SamplingOptions()}, "sampling.temperature=0"),
    ],
)
def test_what_compares_nothing_is_refused(options, named):
    with pytest.raises(ConfigError) as refused:
        CompareSteering(**options)
    assert named in str(refused.value)


def test_the_stage_asks_about_videos_and_draws_the_entropies(tmp_path, capsys):
    counts = {f"{split}_{kind}": 1 for split in ("train", "validation", "test_hard") for kind in ("clips", "images")}
    build(tmp_path / "data", MovingShapesOptions(**counts, test_clips=2, test_images=1))
    (tmp_path / "options.json").write_text(json.dumps({"lr": 0.01, "k": 1}))
    stage = CompareSteering(
        name="study",
        model=BASE,
        sources=(Source(str(tmp_path / "data"), split="test"),),
        questions=4,
        traced=3,
        seeds=2,
        methods=("base", "switch"),
        sampling=SamplingOptions(max_tokens=6, temperature=0.6, seed=3),
        batch_size=4,
        length_buckets=(144,),
        vision=VISION,
        calibrated=str(tmp_path / "options.json"),
    )
    result = stage.run(Run(tmp_path, 0))
    assert (result["vreason"]["lr"], result["vreason"]["k"], result["questions"]) == (0.01, 1, 4)
    assert json.loads((tmp_path / "study.json").read_text())["methods"] == result["methods"]
    assert all(0 < row["output_tokens"] <= 6 and row["latency_s"] > 0 for row in result["methods"].values())
    predictions = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert predictions == {f"study.{method}.{seed}.jsonl" for method in ("base", "switch") for seed in (3, 4)}
    rows = [json.loads(line) for line in (tmp_path / "predictions/study.base.3.jsonl").read_text().splitlines()]
    traces = [json.loads(line) for line in (tmp_path / "traces/study.base.jsonl").read_text().splitlines()]
    length = {trace["id"]: len(trace["entropy"]) for trace in traces}
    assert length == {row["id"]: row["output_tokens"] for row in rows[:3]}  # traced, it decodes as it did
    assert (tmp_path / "study.svg").read_text().count("<polyline") == 2
    assert "2 seeds" in capsys.readouterr().out
