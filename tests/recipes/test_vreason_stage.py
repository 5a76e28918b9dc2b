"""What a plan compiles of an evaluation that decodes with V-Reason."""

import jax
import pytest
from toy_model import needs_eight

from jvlmm.errors import ConfigError
from jvlmm.models.presets import PRESETS
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.sources import VisionOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.sharding.rules import ShardingRules
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.video.budget import PixelOptions


def programs(vreason, media=True, mesh=None, devices=1):
    stage = Evaluate(
        sampling=SamplingOptions(max_tokens=16),
        batch_size=2,
        length_buckets=(256,),
        vision=VisionOptions(
            pixels=PixelOptions(video_min_pixels=784, video_max_pixels=112 * 112), patch_buckets=(1024,)
        ),
        vreason=vreason,
        mesh=mesh,
        rules=ShardingRules(vocab=()),
    )
    found = stage.programs(PRESETS["tiny"], jax.devices()[:devices], "cpu", media)
    return {program.name: program for program in found}


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


@needs_eight
def test_devices_of_a_mesh_share_what_one_would_keep():
    mesh = MeshOptions(data=2, fsdp=1, tensor=2)
    for name in ("evaluate.prefill", "evaluate.decode"):
        (alone, shared) = (programs(VReasonOptions(), **on)[name] for on in ({}, {"mesh": mesh, "devices": 4}))
        assert (alone.devices, shared.devices) == (1, 4)
        state = shared.trace().lower().compile().output_shardings
        for lies in (state.control.delta, state.control.optimizer[0].mu, state.cache.keys[0]):
            assert lies.shard_shape((4, 2, 1, 1)) == (2, 1, 1, 1)
        alone, shared = alone.estimate(), shared.estimate()
        assert shared.parameters < 0.7 * alone.parameters and shared.activations < 0.3 * alone.activations


@needs_eight
def test_rows_are_answered_whole():
    with pytest.raises(ConfigError, match="mesh.context splits rows"):
        programs(None, mesh=MeshOptions(data=1, context=2), devices=2)


def test_without_media_there_is_nothing_to_steer():
    assert programs(VReasonOptions(), media=False)["evaluate.decode"].trace().out_info.control == ()
