"""Options of the policy loss: profiles, overrides, and what is refused."""

from dataclasses import replace

import pytest

from jvlmm.config import apply_overrides, from_json, to_json
from jvlmm.errors import ConfigError
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.profiles import PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_survive_json(name):
    assert from_json(GRPOConfig, to_json(PROFILES[name])) == PROFILES[name]


def test_published_constants():
    bounds = {name: (c.clip_low, c.clip_high) for name, c in PROFILES.items() if c.objective == "clipped"}
    assert bounds["grpo"] == bounds["dr_grpo"] == (0.2, 0.2)
    assert bounds["dapo"] == bounds["tw_grpo"] == (0.2, 0.28) and bounds["gspo"] == (3e-4, 4e-4)
    assert PROFILES["cispo"].ratio_cap == 5 and PROFILES["ema_grpo"].ema_decay == 0.99
    assert {name for name, c in PROFILES.items() if c.beta} == {"grpo", "reg_grpo", "ema_grpo"}


def test_overrides_turn_one_method_into_another():
    changed = apply_overrides(PROFILES["dapo"], ["objective=cispo", "clip_low=none", "clip_high=none", "ratio_cap=5"])
    assert changed == PROFILES["cispo"]
    assert apply_overrides(GRPOConfig(), ["beta=0.04", "kl=k3", "kl_place=loss"]) == PROFILES["grpo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "ppo"}, "grpo.objective='ppo' is unknown"),
        ({"kl": "k4"}, "grpo.kl='k4' is unknown; choose one of none, k1"),
        ({"clip_low": -0.2}, "grpo.clip_low=-0.2 is not allowed"),
        ({"clip_high": float("inf")}, "grpo.clip_high=inf is not allowed"),
        ({"clip_high": None}, "grpo.clip_high is none, but grpo.objective=clipped needs it"),
        ({"beta": float("nan")}, "grpo.beta=nan is not allowed"),
        ({"beta": 0.1}, "grpo.kl is none, but a positive grpo.beta needs it"),
        ({"kl": "k3"}, "grpo.kl='k3' has an effect only with a positive grpo.beta"),
        ({"kl_place": "reward"}, "grpo.kl_place='reward' has an effect only with"),
        ({"max_length": 9}, "grpo.max_length=9 has an effect only with grpo.aggregation=fixed-length"),
        ({"scale": "ema"}, "grpo.ema_decay is none"),
        ({"ema_decay": 0.9}, "grpo.ema_decay=0.9 has an effect only with grpo.scale=ema"),
        ({"scale": "ema", "ema_decay": 1.0}, r"give a number in \[0, 1\)"),
        ({"ratio_cap": 5.0}, "grpo.ratio_cap=5.0 has an effect only with grpo.objective=cispo"),
        ({"objective": "cispo", "ratio_cap": 5.0}, "grpo.clip_low=0.2 has an effect only with grpo.objective=clipped"),
        ({"dual_clip": 0.5}, "grpo.dual_clip=0.5 is not allowed"),
        ({"importance_cap": 0.0}, "grpo.importance_cap=0.0 is not allowed"),
        ({"token_weight": 1.0}, "grpo.token_weight=1.0 is not allowed"),
        ({"difficulty": -1.0}, "grpo.difficulty=-1.0 is not allowed"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cispo", {"ratio": "sequence"}, "grpo.ratio='sequence' has an effect only with"),
        ("reg_grpo", {"aggregation": "token-mean"}, "one loss for each rollout"),
        ("reg_grpo", {"importance_cap": 2.0}, "grpo.importance_cap=2.0 has an effect only with an objective by token"),
        ("reg_grpo", {"token_weight": 1.5}, "grpo.token_weight=1.5 has an effect only with"),
    ],
)
def test_options_that_do_not_go_together(name, options, message):
    with pytest.raises(ConfigError, match=message):
        replace(PROFILES[name], **options)
