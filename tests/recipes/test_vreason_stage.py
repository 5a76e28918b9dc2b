"""What a plan compiles of an evaluation that decodes with V-Reason."""

import jax
import pytest

from jvlmm.models.presets import PRESETS
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.sources import VisionOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.video.budget import PixelOptions


def programs(vreason, media=True):
    stage = Evaluate(
        sampling=SamplingOptions(max_tokens=16),
        batch_size=2,
        length_buckets=(256,),
        vision=VisionOptions(
            pixels=PixelOptions(video_min_pixels=784, video_max_pixels=112 * 112), patch_buckets=(1024,)
        ),
        vreason=vreason,
    )
    return {program.name: program for program in stage.programs(PRESETS["tiny"], jax.devices(), "cpu", media)}


@pytest.mark.parametrize("lite", [None, LiteOptions()])
def test_programs_of_a_plan_decode_with_it(lite):
    for name in ("evaluate.prefill", "evaluate.decode"):
        traced = programs(VReasonOptions(lite=lite))[name].trace()
        assert traced.out_info.control.delta.shape == (2, 2, 64 if lite else 128, 40)
        assert traced.out_info.cache.valid.shape == (2, (192 if lite else 256) + 16)


def test_estimates_count_what_it_keeps_and_what_lite_frees():
    of = {
        name: programs(vreason)["evaluate.decode"].estimate().inputs
        for name, vreason in (("plain", None), ("full", VReasonOptions()), ("lite", VReasonOptions(lite=LiteOptions())))
    }
    assert of["lite"] < of["plain"] < of["full"]


def test_without_media_there_is_nothing_to_steer():
    assert programs(VReasonOptions(), media=False)["evaluate.decode"].trace().out_info.control == ()
