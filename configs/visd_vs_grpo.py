"""How many steps does a teacher with hindsight save? VISD against GRPO on grounded questions, on two CPU cores.

    jvlmm run configs/visd_vs_grpo.py

Both begin with the small base checkpoint after a few steps of SFT, and have the same questions in the same order, the
same rewards (those of VISD's released code) and the same number of steps; five seeds. Questions are those whose
thought says when and where. Half of what SFT shows has hindsight after the question, so that the small model can read
what its teacher is told. Weights reach further than the release's, 1 ± 0.8, and fade over all steps. Ends with the
accuracies on held-out questions along the way, and the share of GRPO's steps that VISD needs for GRPO's last mean.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.visd import VISDConfig
from jvlmm.recipes.curves import CompareCurves
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import BASE, policy, thoughts
from jvlmm.recipes.sources import Source
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.training.experience import GroupOptions
from jvlmm.training.hindsight_writing import OF_QUESTION, HindsightOptions
from jvlmm.training.teaching import TeachingOptions

SEEDS = 5
STEPS = 60
GROUNDED = ("direction", "event", "position", "span", "boxes")
WHEN_AND_WHERE = ("direction", "event", "position")
REWARDS = RewardOptions(
    preset="visd",
    terms=(
        RewardTerm("thk_temporal_point", "thought_moments", question_types=WHEN_AND_WHERE),
        RewardTerm("thk_spatial", "thought_objects", question_types=WHEN_AND_WHERE),
    ),
)
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
                prompts=8,
                group=GroupOptions(size=8),
                seed=seed,
                question_types=GROUNDED,
                rewards=REWARDS,
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
            thoughts("sft", BASE, 80, Source("stage:data", view="hinted")),
            *(stage for pair in zip(grpo, visd, strict=True) for stage in pair),
            CompareCurves(first=names[0], second=names[1]),
        ),
    )
