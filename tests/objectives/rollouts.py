"""Random rollouts for the tests of the policy losses."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Rollouts:
    """Arrays of B prompts with G rollouts each; the names are those of `policy_loss`."""

    log_probs: np.ndarray  # float32 [B, G, C]
    old_log_probs: np.ndarray
    reference_log_probs: np.ndarray
    sampler_log_probs: np.ndarray
    advantages: np.ndarray  # float32 [B, G]
    completion_mask: np.ndarray  # bool [B, G, C]

    def part(self, prompts: slice, rollouts: slice = slice(None)) -> "Rollouts":
        return Rollouts(**{name: value[prompts, rollouts] for name, value in vars(self).items()})


def random_rollouts(seed: int = 0, shape: tuple[int, int, int] = (4, 4, 7), drift: float = 0.5) -> Rollouts:
    """Ragged completions, one of them empty, whose old, reference and sampler log-probs lie `drift` around."""
    random = np.random.default_rng(seed)
    log_probs = -random.exponential(1.0, shape).astype(np.float32)
    around = [log_probs + drift * random.standard_normal(shape).astype(np.float32) for _ in range(3)]
    lengths = random.integers(1, shape[2] + 1, shape[:2])
    lengths[0, 0] = 0
    advantages = random.standard_normal(shape[:2]).astype(np.float32)
    return Rollouts(log_probs, *around, advantages, np.arange(shape[2]) < lengths[..., None])
