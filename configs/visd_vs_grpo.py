"""How many steps does a teacher with hindsight save? VISD against GRPO on grounded questions, on two CPU cores.

    jvlmm run configs/visd_vs_grpo.py

Both begin with the small base checkpoint after a little SFT on questions that bring hindsight: it has learnt to read
what its teacher is told, and does much worse without. Both then have the same questions without hindsight in the same
order, the same rewards (those of VISD's released code) and the same number of steps; five seeds. Questions are those
whose thought says when and where. Weights reach further than the release's, 1 ± 0.8, and fade over all steps. Ends
with the accuracies on held-out questions along the way, and the share of GRPO's steps that VISD needs for GRPO's last
mean.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.visd import VISDConfig
from jvlmm.recipes.curves import CompareCurves
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import BASE, ask, policy, thoughts
from jvlmm.recipes.sources import Source
from jvlmm.rewards.terms import RewardOptions
from jvlmm.training.hindsight_writing import OF_QUESTION, HindsightOptions
from jvlmm.training.teaching import TeachingOptions

SEEDS = 5
STEPS = 40
GROUNDED = ("direction", "event", "position", "span", "boxes")
TEACHING = TeachingOptions(
    VISDConfig(clip=0.8, strength=1.0, anneal_steps=STEPS),
    hindsight=HindsightOptions(OF_QUESTION),  # as SFT shows it
    list_every=STEPS,
)


def recipe() -> Recipe:
    def method(name, teaching):
        return [
            policy(
                f"{name}_{seed}",
                "stage:sft",
                GRPOConfig(),
                steps=STEPS,
                seed=seed,
                question_types=GROUNDED,
                rewards=RewardOptions(preset="visd"),
                teaching=teaching,
                evaluation=(Source("stage:data", split="test", question_types=GROUNDED, limit=300),),
                evaluate_every=5,
            )
            for seed in range(SEEDS)
        ]

    grpo, visd = method("grpo", None), method("visd", TEACHING)
    names = [tuple(stage.name for stage in stages) for stages in (grpo, visd)]
    return Recipe(
        name="visd-vs-grpo",
        workdir="runs/visd-vs-grpo",
        stages=(
            BuildMovingShapes(options=MovingShapesOptions(validation_clips=0, validation_images=0)),
            thoughts("sft", BASE, 90, hinted=True),
            ask("start", "stage:sft", GROUNDED),
            ask("start_hinted", "stage:sft", GROUNDED, hinted=True),
            *(stage for pair in zip(grpo, visd, strict=True) for stage in pair),
            CompareCurves(first=names[0], second=names[1]),
        ),
    )
