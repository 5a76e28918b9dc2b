"""What does V-Reason do to a small model's answers? After SFT and after GRPO, five seeds, on two CPU cores.

    jvlmm run configs/vreason_study.py

Teaches the small base checkpoint to think before it answers, and rewards right answers. On both checkpoints V-Reason is
calibrated by the entropy of answers to training questions, whose gold answers are not looked at; then plain decoding,
the switch, its controls and Lite answer the same held-out questions about videos. Ends with a table for each
checkpoint: accuracy with its 95 % interval over the seeds, tokens written and latency; `*.svg` has the entropies.

The rates tried are higher than those for large models: below 0.03 this model's entropies stay as they are.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.calibrating import Calibrate
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import BASE, MAX_TOKENS, VISION, policy, thoughts
from jvlmm.recipes.sources import Source
from jvlmm.recipes.steering_study import CompareSteering
from jvlmm.rollout.sampling import SamplingOptions

ASKED = {
    "sampling": SamplingOptions(max_tokens=MAX_TOKENS, temperature=0.6),
    "batch_size": 64,
    "length_buckets": (144,),
    "vision": VISION,
}


def recipe() -> Recipe:
    def steered(name):
        calibrate = Calibrate(
            name=f"calibrate_{name}",
            model=f"stage:{name}",
            sources=(Source("stage:data"),),
            lr=(0.03, 0.3, 3.0),
            beta=(0.95,),
            k=(1,),
            **ASKED,
        )
        compare = CompareSteering(
            name=f"vreason_{name}",
            model=f"stage:{name}",
            sources=(Source("stage:data", split="test"),),
            calibrated=f"stage:{calibrate.name}",
            **ASKED,
        )
        return calibrate, compare

    return Recipe(
        name="vreason-study",
        workdir="runs/vreason-study",
        stages=(
            BuildMovingShapes(options=MovingShapesOptions(validation_clips=0, validation_images=0)),
            thoughts("sft", BASE, 200),
            policy("grpo", "stage:sft", GRPOConfig()),
            *steered("sft"),
            *steered("grpo"),
        ),
    )
