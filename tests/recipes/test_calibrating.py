"""What a calibration may read, and how it tells candidates apart."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jvlmm.data.example import Example, Media
from jvlmm.errors import ConfigError, DataError
from jvlmm.recipes.calibrating import Calibrate, unlabelled
from jvlmm.recipes.steering import entropy_chart, read_entropies, with_video
from jvlmm.test_time.entropy_curves import CurveTarget, curve_of
from jvlmm.test_time.vreason import VReasonOptions


def example(name, kind="video", **fields):
    return Example(name, "Who?", "SECRET", "text", (Media(kind, "x"),), **fields)


def test_nothing_that_tells_the_answer_is_left():
    turn = example("1", response="A reply.", meta={"evidence": "SECRET"})
    (row,) = unlabelled([example("2", response="SECRET", learn=("SECRET",), meta={"a": "SECRET"}, earlier=(turn,))])
    assert "SECRET" not in repr(row)
    assert row.question == "Who?" and row.media and row.earlier[0].response == "A reply."


def test_questions_about_videos_are_kept_up_to_the_limit():
    rows = [example("1", "image"), example("2"), example("3"), example("4")]
    assert [row.id for row in with_video(rows, 2)] == ["2", "3"]
    with pytest.raises(ConfigError, match="no question has a video"):
        with_video(rows[:1], 2)
    follow_up = Example("5", "And now?", "SECRET", "text", earlier=(example("6", response="A dog."),))
    assert with_video([follow_up], 1) == [follow_up], "its video stands in an earlier turn"


def test_a_curve_goes_on_as_long_as_half_of_the_questions():
    curve = curve_of([[1.0], [3.0, 2.0], [2.0, 4.0, 9.0]])
    np.testing.assert_allclose(curve.mean, [2.0, 3.0])
    np.testing.assert_allclose(curve.half_width, [1.96 / math.sqrt(3), 1.96 * math.sqrt(2) / math.sqrt(2)], rtol=1e-4)
    assert curve.questions == 3
    assert curve_of([[0.5] * 30]).peak == pytest.approx(0.5) and curve_of([[0.5] * 30]).end == pytest.approx(0.5)


def test_the_distance_is_0_at_the_target_and_counts_half_and_twice_alike():
    plain, target = curve_of([[1.0] * 40]), CurveTarget(peak=0.8, end=0.4)
    of = lambda peak, end: target.distance(curve_of([[peak] * 20 + [end] * 20]), plain)  # noqa: E731
    assert of(0.8, 0.4) == pytest.approx(0)
    assert of(0.8, 0.2) == pytest.approx(of(0.8, 0.8)) == pytest.approx(math.log(2))
    assert of(0.8, 0.0) < math.inf
    assert target.distance(plain, plain) == pytest.approx(math.hypot(math.log(0.8), math.log(0.4)))
    with pytest.raises(ConfigError, match="nothing to lower"):
        target.distance(plain, curve_of([[0.0] * 40]))


@pytest.mark.parametrize("ratio", [0.0, -0.5, math.inf, math.nan])
@pytest.mark.parametrize("name", ["peak", "end"])
def test_a_target_is_a_positive_ratio(name, ratio):
    with pytest.raises(ConfigError, match=rf"target.{name}=.* is not allowed; give a positive ratio"):
        CurveTarget(**{name: ratio})


def test_candidates_are_all_combinations_the_cheapest_first():
    stage = Calibrate(lr=(1e-2, 1e-3), beta=(0.9,), k=(1, 2), vreason=VReasonOptions(b1=0.0))
    found = [(options.k, options.lr) for options in stage.candidates()]
    assert found == [(2, 1e-3), (2, 1e-2), (1, 1e-3), (1, 1e-2)]
    assert all(options.b1 == 0 and options.trace for options in stage.candidates())
    assert len(Calibrate().candidates()) == 36


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": ()}, "lr=()"),
        ({"k": (0,)}, "vreason.k=0"),
        ({"questions": 0}, "questions=0"),
        ({"vreason": VReasonOptions(mode="off")}, "mode=off"),
    ],
)
def test_what_cannot_be_swept_is_refused(options, named):
    with pytest.raises(ConfigError) as refused:
        Calibrate(**options)
    assert named in str(refused.value)


def test_the_chart_has_a_line_and_a_band_for_every_curve():
    curves = {"plain": curve_of([[0.2, 1.0, 0.5], [0.4, 1.2, 0.1]]), "a<b": curve_of([[0.1]])}
    chart = ElementTree.fromstring(entropy_chart(curves))
    tags = [node.tag.rpartition("}")[2] for node in chart.iter()]
    assert tags.count("polyline") == tags.count("polygon") == 2
    assert "a<b" in [node.text for node in chart.iter()]
    points = [pair.split(",") for pair in chart.find("{*}polyline").attrib["points"].split()]
    heights = [float(y) for _, y in points]
    assert (
        len(points) == 3
        and heights[1] < heights[0]
        and [float(x) for x, _ in points] == sorted(float(x) for x, _ in points)
    )


def test_a_long_legend_has_rows_and_stays_in_the_picture():
    chart = ElementTree.fromstring(entropy_chart({f"a_rather_long_name_{n}": curve_of([[1.0]]) for n in range(6)}))
    named = [node for node in chart.findall("{*}text") if "name" in node.text]
    assert len(named) == 6 and len({node.attrib["y"] for node in named}) > 1
    assert all(float(node.attrib["x"]) + 7 * len(node.text) < 720 for node in named)


def test_what_is_no_trace_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        read_entropies(path)
    for text in ("", '{"id": "1"}', "x"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"x\.jsonl: .*vreason\.trace=true"):
            read_entropies(path)
    path.write_text(json.dumps({"id": "1", "entropy": [1, 0.5]}))
    assert read_entropies(path) == [[1.0, 0.5]]
    path.write_text('{"id": "1", "text": "a\u2028b\x85c", "entropy": [1, 0.5]}\n', encoding="utf-8")
    assert read_entropies(path) == [[1.0, 0.5]], "only a line feed ends a line of JSON"
