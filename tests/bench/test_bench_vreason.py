import json
from dataclasses import replace

import pytest

from jvlmm.bench import vreason
from jvlmm.bench.process import BenchError
from jvlmm.bench.steered import SteeredWorkload, tail_share
from jvlmm.cli.main import main
from jvlmm.models.presets import PRESETS

CONFIG = replace(
    PRESETS["tiny"],
    vision=replace(PRESETS["tiny"].vision, depth=2, fullatt_block_indexes=(1,)),
    text=replace(PRESETS["tiny"].text, num_layers=2),
)
WORKLOAD = SteeredWorkload(video_tokens=64, batch=2, text_tokens=16, new_tokens=4)


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "toy", CONFIG)
        return vreason.run("toy", WORKLOAD, rounds=1)


def test_one_run_prices_every_way_of_decoding(result):
    json.dumps(result)
    values = {measure["name"]: measure["value"] for measure in result["measures"]}
    assert result["bench"] == "vreason" and result["sizes"] == {"video_tokens": 64, "batch": 2, "new_tokens": 4}
    assert all(value > 0 for value in values.values())
    assert values["tail_share"] == pytest.approx(tail_share(CONFIG), abs=1e-4)
    for name, side in (("cost_k1", "k1"), ("cost_k2", "k2"), ("lite_cost", "lite")):
        assert values[name] == pytest.approx(values[f"{side}_token"] / values["plain_token"], rel=0.05, abs=1e-3)
    assert values["lite_cache"] < values["plain_cache"]


@pytest.mark.parametrize(("preset", "share"), [("3b", 0.124), ("7b", 0.108), ("32b", 0.038), ("72b", 0.029)])
def test_the_tail_is_a_small_share_of_the_released_sizes(preset, share):
    assert tail_share(PRESETS[preset]) == pytest.approx(share, abs=6e-4)


def test_a_side_that_writes_less_is_refused():
    with pytest.raises(BenchError, match=r"the k1 side wrote \[4, 3\] tokens, not 4 in each row"):
        vreason._check_tokens("k1", [4, 3], WORKLOAD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "--preset 'huge' is not known"),
        (["--video-tokens", "100"], "--video-tokens 100 cannot be made of frames of 64 tokens; give a multiple"),
        (["--batch", "0"], "--batch 0 is too small; give at least 1"),
        (["--new-tokens", "1"], "--new-tokens 1 is too small; give at least 2"),
        (["--threads", "0"], "--threads 0 is too small; give at least 1"),
        (["--rounds", "0"], "--rounds 0 is too small; give at least 1"),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, message, capsys):
    assert main(["bench", "vreason", *arguments]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"jvlmm: error: {message}") and "\n" not in line
