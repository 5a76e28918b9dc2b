"""Every constant that a profile or a default takes from a publication, with the publication it stands in.

Whole configurations are compared, so that a field which changes unseen is found, and one that is new needs a source.
"""

import inspect
from dataclasses import asdict, replace

import numpy as np
import pytest

from jvlmm.judges.rules import Rules
from jvlmm.objectives import advantages, distillation, kl, surrogates, task_moments
from jvlmm.objectives.distillation import DISTILLATION_PROFILES, DistillationConfig
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.profiles import PROFILES
from jvlmm.objectives.visd import VISD_PROFILES, VISDConfig
from jvlmm.rewards import groups, shaping, video_r1
from jvlmm.rewards.terms import PRESETS
from jvlmm.test_time.entropy_curves import CurveTarget
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.training.frame_order import FrameOrder
from jvlmm.training.hindsight_writing import HindsightOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.teaching import TEACHING_PROFILES, TeachingOptions
from jvlmm.video import budget, sampling
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

SAME_FOR_ALL = {
    "scale": "group",  # arXiv:2402.03300 §4.1.2
    "ema_decay": None,
    "difficulty": 0.0,
    "token_weight": None,
    "objective": "clipped",  # arXiv:1707.06347 eq. 7
    "ratio": "token",
    "clip_low": 0.2,  # arXiv:1707.06347 §6.1
    "clip_high": 0.2,
    "dual_clip": None,
    "ratio_cap": None,
    "importance_cap": None,
    "offline_shape": 0.1,  # LUFFY, arXiv:2504.14945 §3.2
    "aggregation": "sequence-mean",  # arXiv:2402.03300 eq. 3
    "max_length": None,
    "beta": 0.0,
    "kl": None,
    "kl_place": None,
}
K3 = {"kl": "k3", "kl_place": "loss"}
OBJECTIVES = {
    "grpo": {"beta": 0.04, **K3},  # DeepSeekMath, arXiv:2402.03300 §4.2
    "dr_grpo": {"scale": "none", "aggregation": "fixed-length"},  # arXiv:2503.20783 §3 and released script
    "dapo": {"clip_high": 0.28, "aggregation": "token-mean"},  # arXiv:2503.14476 §4.1
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},  # arXiv:2507.18071 §5.1
    "cispo": {  # MiniMax-M1, arXiv:2506.13585 eq. 4; the cap of ScaleRL, arXiv:2510.13786
        "objective": "cispo",
        "clip_low": None,
        "clip_high": None,
        "ratio_cap": 5.0,
        "aggregation": "token-mean",
    },
    "lite_ppo": {"scale": "batch", "aggregation": "token-mean"},  # arXiv:2508.08221
    "reg_grpo": {  # DeepVideo-R1, arXiv:2506.07464 §C.1
        "objective": "regression",
        "clip_low": None,
        "clip_high": None,
        "beta": 0.1,
        **K3,
    },
    # arXiv:2505.24718, released code (commit 3abc3c3)
    "tw_grpo": {"token_weight": 1.7, "clip_high": 0.28, "aggregation": "token-mean"},
    "ema_grpo": {"scale": "ema", "ema_decay": 0.99, "beta": 0.01, **K3},  # OneThinker, arXiv:2512.03043 §4.1
}
VISD = {
    "visd_release": {  # arXiv:2605.06094, released code
        "top_k": 16,
        "sampled": 0.0,
        "clip": 0.2,
        "strength": 0.5,
        "anneal_steps": 600,
        "negative_only": False,
    },
    "rlsd": {  # arXiv:2604.03128
        "top_k": 16,
        "sampled": 1.0,
        "clip": 0.2,
        "strength": 0.5,
        "anneal_steps": 50,
        "negative_only": False,
    },
}
DISTILLATION = {
    # arXiv:2601.18734: KL(T ‖ S) over the vocabulary, here the teacher's top-K; each entry capped
    "opsd": {"top_k": 100, "support": "teacher", "mix": 0.0, "word_cap": 0.05, "importance_cap": None},
    # arXiv:2601.20802, both settings
    "sdpo": {"top_k": 100, "support": "student", "mix": 0.5, "word_cap": None, "importance_cap": 2.0},
    "sdpo_reverse": {"top_k": 20, "support": "student", "mix": 1.0, "word_cap": None, "importance_cap": 2.0},
    # arXiv:2601.19897
    "sdft": {"top_k": 100, "support": "student", "mix": 0.5, "word_cap": None, "importance_cap": None},
    # arXiv:2306.13649
    "gkd": {"top_k": 100, "support": "teacher", "mix": 0.5, "word_cap": None, "importance_cap": None},
}
TEACHERS = {  # decay, every, lines, model
    "visd_release": (0.99, 1, ("answer", "window", "moments", "feedback"), ""),  # arXiv:2605.06094, released code
    "rlsd": (0, 20, ("answer",), ""),  # arXiv:2604.03128: synchronised every 20 steps
    "opsd": (1, 1, ("demonstration",), ""),  # arXiv:2601.18734: the gold solution, a frozen teacher
    "sdpo": (0.95, 1, ("sibling", "feedback"), ""),  # arXiv:2601.20802: an average that goes 0.05 of the way
    "sdpo_reverse": (0.99, 1, ("sibling", "feedback"), ""),  # likewise 0.01
    "sdft": (1, 1, ("demonstration",), ""),  # arXiv:2601.19897: a frozen teacher
    "gkd": (None, 1, (), "teacher"),  # arXiv:2306.13649: a larger model
}


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() | PROFILES.keys()))
def test_objectives(name):
    assert asdict(PROFILES[name]) == SAME_FOR_ALL | OBJECTIVES[name]


def test_an_objective_without_a_name_is_grpo_without_reference_model():
    assert asdict(GRPOConfig()) == SAME_FOR_ALL


@pytest.mark.parametrize("name", sorted(VISD.keys() | VISD_PROFILES.keys()))
def test_weights_of_tokens(name):
    assert asdict(VISD_PROFILES[name]) == VISD[name]
    assert VISDConfig() == VISD_PROFILES["visd_release"]


def test_the_strength_falls_as_in_the_release():
    """λ at steps 1, 2, 300, 600 and after: arXiv:2605.06094, released code."""
    found = [VISDConfig().strength_at(step) for step in (1, 2, 300, 600, 601, 10_000)]
    assert found == pytest.approx([0.5, 0.499167, 0.250833, 0.000833, 0, 0], abs=5e-7)


@pytest.mark.parametrize("name", sorted(DISTILLATION.keys() | DISTILLATION_PROFILES.keys()))
def test_divergences(name):
    assert asdict(DISTILLATION_PROFILES[name]) == DISTILLATION[name]


@pytest.mark.parametrize("name", sorted(TEACHERS.keys() | TEACHING_PROFILES.keys()))
def test_teachers(name):
    decay, every, lines, model = TEACHERS[name]
    lesson = VISD_PROFILES[name] if name in VISD_PROFILES else DISTILLATION_PROFILES[name]
    hindsight = HindsightOptions(lines=lines, shuffled=False, right=1.0, judge=Rules(), max_tokens=2048)
    assert TEACHING_PROFILES[name] == TeachingOptions(
        lesson=lesson, model=model, decay=decay, every=every, hindsight=hindsight, list_every=50
    )


def test_a_sibling_is_right_from_the_full_reward():
    """arXiv:2601.20802 and TRL's `success_reward_threshold`."""
    assert HindsightOptions().right == 1.0


@pytest.mark.parametrize(
    ("found", "published"),
    [
        (advantages.STD_EPSILON, 1e-4),  # TRL and Video-R1
        (task_moments.DECAY, 0.99),  # arXiv:2512.03043 §3.3
        (task_moments.LIMIT, 5.0),  # arXiv:2512.03043 eq. 11
        (task_moments.TaskMoments({"task": (0.0, 0.0)}).std("task"), 1e-3),  # its released code
        (distillation.LEAST_REST, 1e-7),  # TRL's SDPO
        (kl.token_kl(np.float32(0), np.float32(30), "k3"), 22015.4658),  # e^10 − 10 − 1: as TRL bounds log-ratios
        (surrogates.LOG_RATIO_LIMIT, 20.0),  # ours and TRL's, of log-ratios
        (groups.CORRECT, 0.1),  # Video-R1, arXiv:2503.21776, released code
        (video_r1._EPSILON, 1e-9),  # likewise, of its regression
        (sampling.FRAME_FACTOR, 2),  # qwen_vl_utils.vision_process
        (budget.MERGED_PATCH, 28),
        (budget.MAX_ASPECT_RATIO, 200),
    ],
)
def test_single_numbers(found, published):
    assert found == pytest.approx(published, rel=1e-6)


DEFAULTS = {
    # T-GRPO in Video-R1's released code: bonus 0.3 from 0.8 of the accuracy on shuffled frames
    (groups.video_r1_temporal_bonus, "ratio"): 0.8,
    (groups.video_r1_temporal_bonus, "bonus"): 0.3,
    (groups.temporal_bonus, "margin"): 0.0,
    # Video-R1's length bonus
    (shaping.length, "min_tokens"): 320,
    (shaping.length, "max_tokens"): 512,
    (shaping.repetition, "ngram"): 4,
}


@pytest.mark.parametrize(("function", "name"), DEFAULTS, ids=lambda part: getattr(part, "__name__", part))
def test_defaults_of_rewards(function, name):
    assert inspect.signature(function).parameters[name].default == DEFAULTS[function, name]


def test_presets_of_rewards():
    """LongVILA-R1 weighs 0.9 and 0.1; Video-R1 and VISD sum without weights."""
    assert [(term.name, term.weight) for term in PRESETS["default"]] == [("accuracy", 0.9), ("format", 0.1)]
    assert {term.weight for preset in ("video-r1", "visd") for term in PRESETS[preset]} == {1.0}


def test_the_order_of_frames():
    """Video-R1, arXiv:2503.21776: the code's form, its bonus, half of a group of 8 on shuffled frames."""
    assert asdict(FrameOrder()) == {"form": "video-r1", "shuffled": 4, "weight": 0.3, "margin": None, "ratio": None}


def test_vreason():
    """arXiv:2510.17045 names k = 2 and half of the video tokens; Adam is Kingma and Ba's; the others are ours."""
    assert asdict(replace(VReasonOptions(), lite=LiteOptions())) == {
        "mode": "switch",
        "k": 2,
        "inner_steps": 1,
        "lr": 3e-3,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "beta": 0.95,
        "min_entropy": 0.0,
        "resample_after_update": False,
        "trace": False,
        "lite": {"ratio": 0.5, "rank_by": "value", "per_head": False},
    }
    assert VReasonOptions().lite is None
    # Read off its plots: 0.90 of 1.25 nats at the peak, 0.32 of 0.85 at the end.
    assert CurveTarget() == CurveTarget(peak=0.72, end=0.38)


def test_frames_and_pixels():
    """qwen_vl_utils.vision_process: FPS, FRAME_FACTOR, FPS_MIN_FRAMES, FPS_MAX_FRAMES, and its pixel budgets."""
    frames = FrameOptions()
    assert (frames.fps, frames.min_frames, frames.max_frames, frames.num_frames) == (2.0, 4, 768, None)
    pixels = PixelOptions()
    assert (pixels.video_min_pixels, pixels.video_max_pixels) == (100_352, 602_112)
    assert pixels.video_total_pixels == 90_316_800
    assert (pixels.min_pixels, pixels.max_pixels) == (3_136, 1_003_520)


def test_adam():
    """Kingma and Ba 2015; the eps of AdamW is PyTorch's."""
    options = OptimizerOptions()
    assert (options.b1, options.b2, options.eps) == (0.9, 0.999, 1e-8)


def test_what_is_not_named_is_gkd():
    assert DistillationConfig() == DISTILLATION_PROFILES["gkd"]
