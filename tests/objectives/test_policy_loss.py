"""The policy loss of every profile: gradients, microbatches, masks, and TRL's formulas.

TRL's are written from its documentation (docs/source/grpo_trainer.md and paper_index.md, commits 010dd23 and 0167b7d).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import Rollouts, random_rollouts

from jvlmm.objectives.aggregation import without_truncated
from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.objectives.profiles import PROFILES

FIXED_LENGTH = replace(PROFILES["dr_grpo"], max_length=3000)  # as a stage that samples so many tokens fills it in
OPTIONS = {
    **PROFILES,
    "dr_grpo": FIXED_LENGTH,
    "dual_clip": GRPOConfig(dual_clip=3.0),
    "importance": GRPOConfig(importance_cap=1.5, aggregation="token-mean"),
    "k2": GRPOConfig(beta=0.5, kl="k2", kl_place="loss"),
}
BY_TOKEN = {name: config for name, config in OPTIONS.items() if config.objective != "regression"}
every_profile = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)


def parts(config: GRPOConfig, r: Rollouts, **options):
    return policy_loss(
        r.log_probs,
        r.old_log_probs,
        options.pop("advantages", r.advantages),
        r.completion_mask,
        config,
        reference_log_probs=r.reference_log_probs,
        sampler_log_probs=r.sampler_log_probs,
        **options,
    )


def mean(config: GRPOConfig, r: Rollouts, **options) -> jax.Array:
    total, count, _ = parts(config, r, **options)
    return total / count


def gradient(config: GRPOConfig, r: Rollouts, **options) -> jax.Array:
    return jax.grad(lambda x: mean(config, Rollouts(**{**vars(r), "log_probs": x}), **options))(r.log_probs)


# --- TRL's formulas --------------------------------------------------------------------------------------------------


def trl_loss(
    r: Rollouts,
    loss_type: str,
    low: float,
    high: float,
    beta: float = 0.0,
    sequence=False,
    length=None,
    truncated=False,
):
    """The documented loss, rollout by rollout and token by token, in float64."""
    losses, lengths = [], []
    for new, old, reference, advantage, mask in zip(
        *(
            x.reshape(-1, *x.shape[2:]).astype(np.float64)
            for x in (r.log_probs, r.old_log_probs, r.reference_log_probs, r.advantages)
        ),
        r.completion_mask.reshape(-1, r.completion_mask.shape[2]),
        strict=True,
    ):
        tokens = []
        for t in np.flatnonzero(mask):
            log_ratio = (new - old)[mask].mean() if sequence else new[t] - old[t]
            ratio = np.exp(log_ratio)
            if loss_type == "cispo":
                token = -min(ratio, high) * advantage * new[t]
            else:
                token = -min(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)
            divergence = np.exp(reference[t] - new[t]) - (reference[t] - new[t]) - 1
            tokens.append(token + beta * divergence)
        losses.append(sum(tokens))
        lengths.append(len(tokens))
    losses, lengths = np.where(truncated, 0.0, losses), np.array(lengths)
    match loss_type:
        case "grpo":
            return (losses / np.maximum(lengths, 1)).mean()
        case "dapo" | "cispo":
            return losses.sum() / lengths.sum()
        case "dr_grpo":
            return losses.sum() / (len(losses) * length)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("grpo", {"loss_type": "grpo", "low": 0.2, "high": 0.2, "beta": 0.04}),
        ("dr_grpo", {"loss_type": "dr_grpo", "low": 0.2, "high": 0.2, "length": 3000}),
        ("dapo", {"loss_type": "dapo", "low": 0.2, "high": 0.28}),
        ("gspo", {"loss_type": "grpo", "low": 3e-4, "high": 4e-4, "sequence": True}),
        ("cispo", {"loss_type": "cispo", "low": 0.0, "high": 5.0}),
    ],
)
def test_agrees_with_trl(name, arguments):
    for seed in range(3):
        r = random_rollouts(seed, drift=1.0)
        np.testing.assert_allclose(mean(OPTIONS[name], r), trl_loss(r, **arguments), rtol=1e-5)


def test_importance_correction_weighs_the_surrogate_and_not_the_kl():
    r = random_rollouts()
    config = GRPOConfig(importance_cap=1.5, beta=0.1, kl="k3", kl_place="loss", aggregation="token-mean")
    weights = np.minimum(np.exp(r.old_log_probs - r.sampler_log_probs), 1.5)
    without = replace(config, importance_cap=None)
    expected = mean(without, r, advantages=r.advantages[..., None] * weights)
    np.testing.assert_allclose(mean(config, r), expected, rtol=1e-5)


# --- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", BY_TOKEN.values(), ids=BY_TOKEN)
@pytest.mark.parametrize("stored", [True, False])
def test_first_step_is_the_policy_gradient(config, stored):
    """On-policy, with the reference and the sampler equal to the policy, the gradient is −A, averaged."""
    r = random_rollouts(drift=0.0)
    r = r if stored else Rollouts(**{**vars(r), "old_log_probs": None})
    mask, rollouts = r.completion_mask, r.completion_mask.shape[0] * r.completion_mask.shape[1]
    share = {
        "sequence-mean": 1 / (np.maximum(mask.sum(-1, keepdims=True), 1) * rollouts),
        "token-mean": 1 / mask.sum(),
        "fixed-length": 1 / (rollouts * (config.max_length or 1)),
    }[config.aggregation]
    expected = np.where(mask, -r.advantages[..., None] * share, 0)
    np.testing.assert_allclose(gradient(config, r), expected, rtol=1e-5, atol=1e-9)


@every_profile
def test_no_advantage_moves_nothing(config):
    config = replace(config, beta=0.0, kl=None, kl_place=None)
    r = random_rollouts(drift=2.0)
    assert not gradient(config, r, advantages=np.zeros_like(r.advantages)).any()


@every_profile
def test_masked_entries_reach_neither_loss_nor_gradient(config):
    r = random_rollouts()
    arrays = {name: np.where(r.completion_mask, x, np.nan) for name, x in vars(r).items() if name.endswith("log_probs")}
    spoilt = Rollouts(**{**vars(r), **arrays})
    np.testing.assert_array_equal(mean(config, spoilt), mean(config, r))
    found = gradient(config, spoilt)
    np.testing.assert_array_equal(found, gradient(config, r))
    assert not found[~r.completion_mask].any() and found[r.completion_mask].any()


@every_profile
def test_only_the_policy_has_a_gradient(config):
    r = random_rollouts()
    given = {name: x for name, x in vars(r).items() if name not in ("log_probs", "completion_mask")}

    def loss(given):
        return mean(config, Rollouts(log_probs=r.log_probs, completion_mask=r.completion_mask, **given))

    assert not any(g.any() for g in jax.grad(loss)(given).values())


def test_bounds_take_the_gradient_only_where_enough_was_gained():
    r = random_rollouts(drift=1.0)
    found = gradient(PROFILES["dapo"], r)
    ratio, up = np.exp(r.log_probs - r.old_log_probs), np.broadcast_to(r.advantages[..., None] > 0, r.log_probs.shape)
    taken = r.completion_mask & np.where(up, ratio > 1.28, ratio < 0.8)
    assert taken.any() and not found[taken].any()
    kept = r.completion_mask & ~taken
    np.testing.assert_array_equal(np.sign(found[kept]), np.where(up, -1, 1)[kept])


# --- Microbatches and masks ------------------------------------------------------------------------------------------


def added(config: GRPOConfig, pieces: list[Rollouts]):
    return jax.tree.map(lambda *x: np.sum(x, dtype=np.float64), *(parts(config, piece) for piece in pieces))


@every_profile
def test_microbatches_add_up(config):
    """Prompt by prompt, and rollout by rollout where the loss does not look at the group."""
    r = random_rollouts(shape=(2, 4, 6))
    whole = jax.tree.map(np.float64, parts(config, r))
    cuts = [[r.part(slice(b, b + 1)) for b in range(2)]]
    if config.objective != "regression":
        cuts.append([r.part(slice(b, b + 1), slice(g, g + 1)) for b in range(2) for g in range(4)])
    for pieces in cuts:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5), added(config, pieces), whole)


@every_profile
def test_padding_is_not_counted(config):
    r = random_rollouts()
    padded = Rollouts(**{n: np.concatenate([x, np.ones_like(x[:2])]) for n, x in vars(r).items()})
    found = parts(config, padded, rollout_mask=np.arange(6)[:, None].repeat(4, 1) < 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, parts(config, r))


@every_profile
def test_groups_without_tokens_add_nothing(config):
    r = random_rollouts()
    r.completion_mask[:] = False
    total, count, extras = parts(config, r)
    assert total == 0 and extras["tokens"] == 0 and extras["rollouts"] == 16
    assert count == (0 if config.aggregation == "token-mean" else 16)
    assert not jax.grad(lambda x: parts(config, Rollouts(**{**vars(r), "log_probs": x}))[0])(r.log_probs).any()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("grpo", {"loss_type": "grpo", "low": 0.2, "high": 0.2, "beta": 0.04}),
        ("dr_grpo", {"loss_type": "dr_grpo", "low": 0.2, "high": 0.2, "length": 3000}),
        ("dapo", {"loss_type": "dapo", "low": 0.2, "high": 0.28}),
    ],
)
def test_truncated_rollouts_are_not_learnt_and_stay_in_the_count(name, arguments):
    """As with TRL's mask_truncated_completions, whose mean is over all rollouts, and over all tokens for DAPO."""
    r = random_rollouts(drift=1.0)
    truncated = np.random.default_rng(3).random(r.advantages.shape) < 0.4
    found = parts(OPTIONS[name], r, truncated=truncated)
    expected = trl_loss(r, **arguments, truncated=truncated.ravel())
    np.testing.assert_allclose(found[0] / found[1], expected, rtol=1e-5)
    assert found[1] == parts(OPTIONS[name], r)[1], "the count is that of all"
    learnt = r.completion_mask & ~truncated[..., None]
    assert found[2]["tokens"] == learnt.sum() and found[2]["rollouts"] == (~truncated).sum()
    slopes = gradient(OPTIONS[name], r, truncated=truncated)
    assert not slopes[~learnt].any()
    np.testing.assert_array_equal(slopes[learnt], gradient(OPTIONS[name], r)[learnt])


@every_profile
def test_where_all_are_truncated_nothing_moves(config):
    r = random_rollouts()
    every = np.ones(r.advantages.shape, bool)
    total, count, extras = parts(config, r, truncated=every)
    assert total == 0 and count > 0 and extras["tokens"] == extras["rollouts"] == 0
    assert not gradient(config, r, truncated=every).any()


def test_a_fixed_length_needs_a_length():
    with pytest.raises(ValueError, match="needs max_length, the longest completion"):
        mean(PROFILES["dr_grpo"], random_rollouts())


def test_truncated_rollouts_lose_their_tokens():
    mask = np.ones((1, 2, 3), bool)
    np.testing.assert_array_equal(without_truncated(mask, np.array([[True, False]])), [[[0] * 3, [1] * 3]])


# --- Advantages and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", BY_TOKEN.values(), ids=BY_TOKEN)
def test_advantages_by_token_that_are_all_alike_change_no_bit(config):
    r = random_rollouts()
    by_token = np.broadcast_to(r.advantages[..., None], r.log_probs.shape)
    np.testing.assert_array_equal(mean(config, r, advantages=by_token), mean(config, r))
    np.testing.assert_array_equal(gradient(config, r, advantages=by_token), gradient(config, r))


@pytest.mark.parametrize("config", [PROFILES["dapo"], PROFILES["gspo"]])
def test_advantages_by_token_scale_the_gradient_of_their_token(config):
    r = random_rollouts(drift=0.0)
    weights = np.random.default_rng(1).uniform(1, 1.7, r.log_probs.shape).astype(np.float32)
    weighted = gradient(config, r, advantages=r.advantages[..., None] * weights)
    np.testing.assert_allclose(weighted, gradient(config, r) * weights, rtol=1e-5)


@every_profile
def test_prompt_weights_scale_the_surrogate_of_a_prompt(config):
    config = replace(config, beta=0.0, kl=None, kl_place=None)
    r, weights = random_rollouts(), np.array([1.0, 2.0, 0.5, 0.0], np.float32)
    expected = gradient(config, r) * weights[:, None, None]
    np.testing.assert_allclose(gradient(config, r, prompt_weights=weights), expected, rtol=1e-5, atol=1e-9)


# --- What is reported ------------------------------------------------------------------------------------------------


def test_extras_by_hand():
    old = np.log(np.full((1, 2, 3), 0.5, np.float32))
    r = Rollouts(
        log_probs=old + np.log(np.array([[[1.5, 0.5, 1.0], [1.5, 0.5, 4.0]]], np.float32)),
        old_log_probs=old,
        reference_log_probs=old,
        sampler_log_probs=old - 0.25,
        advantages=np.array([[1.0, -1.0]], np.float32),
        completion_mask=np.array([[[1, 1, 0], [1, 1, 1]]], bool),
    )
    extras = parts(replace(PROFILES["dapo"], dual_clip=3.0), r)[2]
    k3 = sum(1 / x + np.log(x) - 1 for x in (1.5, 0.5, 1.5, 0.5, 4.0))
    expected = {"tokens": 5, "rollouts": 2, "ratio_sum": 8, "kl_sum": k3, "sampler_gap_sum": 5 * 0.25}
    expected |= {"clipped_low": 1, "clipped_high": 1, "clipped_dual": 1}
    assert extras.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(extras[name], value, rtol=1e-5, err_msg=name)
    assert parts(replace(PROFILES["cispo"], ratio_cap=2.0), r)[2]["clipped_high"] == 1


def test_two_rollouts_are_a_group():
    r = random_rollouts().part(slice(None), slice(0, 2))
    assert np.isfinite(mean(PROFILES["reg_grpo"], r)) and gradient(PROFILES["reg_grpo"], r).any()


def test_what_does_not_fit_is_refused():
    r = random_rollouts()
    arrays = (r.log_probs, r.old_log_probs, r.advantages, r.completion_mask)
    with pytest.raises(ValueError, match="needs reference_log_probs"):
        policy_loss(*arrays, PROFILES["grpo"])
    with pytest.raises(ValueError, match="importance_cap needs sampler_log_probs"):
        policy_loss(*arrays, OPTIONS["importance"])
    with pytest.raises(ValueError, match=r"want \[B, G, C\] and \[B, G\]"):
        parts(PROFILES["dapo"], r, advantages=r.advantages[0])
    with pytest.raises(ValueError, match="compares whole groups"):
        parts(PROFILES["reg_grpo"], r.part(slice(None), slice(0, 1)))
    with pytest.raises(ValueError, match="compares whole groups"):
        parts(PROFILES["reg_grpo"], r, advantages=jnp.zeros(r.log_probs.shape))
