"""From video files to a reasoning model in minutes on two CPU cores.

    jvlmm run configs/quickstart.py

Draws Moving Shapes, takes the small base checkpoint that comes with the package, teaches it to think before it answers
(chain-of-thought SFT), rewards right answers for a few steps (GRPO), and asks it the same test questions before,
between and after. `models/sft` and `models/grpo` open in transformers. What the stages are made of stands in
`jvlmm/recipes/small_stages.py`.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import BASE, ask, policy, thoughts


def recipe() -> Recipe:
    return Recipe(
        name="quickstart",
        workdir="runs/quickstart",
        stages=(
            BuildMovingShapes(options=MovingShapesOptions(validation_clips=0, validation_images=0)),
            ask("before", BASE),
            thoughts("sft", BASE, steps=500),
            ask("after_sft", "stage:sft"),
            policy("grpo", "stage:sft", GRPOConfig(), steps=20, learning_rate=5e-5),
            ask("after", "stage:grpo"),
        ),
    )
