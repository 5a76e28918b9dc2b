"""A recipe of tiny width whose programs have static shapes, for tests of `jvlmm plan`."""

from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.video.budget import PixelOptions


def recipe():
    vision = VisionOptions(pixels=PixelOptions(784, 112 * 112, 784, 112 * 112), patch_buckets=(2048,))
    shapes = {"batch_size": 8, "length_buckets": (128,), "vision": vision}
    sft = SFT(model="tiny", mesh=MeshOptions(data=1, fsdp=-1), remat="full", **shapes)
    evaluate = Evaluate(model="stage:sft", sampling=SamplingOptions(max_tokens=16), **shapes)
    return Recipe(name="plan", workdir="runs/plan", stages=(sft, evaluate))
