"""Published members of the GRPO family, by name: `replace(PROFILES["dapo"], beta=…)` changes one.

Rewards, dynamic sampling, overlong filtering and the number of rollouts are no part of the loss, and not here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.task_moments import DECAY

# DeepSeekMath, arXiv:2402.03300 §4.2: KL coefficient 0.04; ε is PPO's.
GRPO = GRPOConfig(beta=0.04, kl="k3", kl_place="loss")

# arXiv:2503.20783, released script: no KL; divided by the most tokens that are sampled (3,000 there), which a stage
# fills in.
DR_GRPO = GRPOConfig(scale="none", aggregation="fixed-length")

# arXiv:2503.14476 §4.1.
DAPO = GRPOConfig(clip_high=0.28, aggregation="token-mean")

# arXiv:2507.18071 §5.1.
GSPO = GRPOConfig(ratio="sequence", clip_low=3e-4, clip_high=4e-4)

# MiniMax-M1, arXiv:2506.13585; the cap is ScaleRL's, arXiv:2510.13786.
CISPO = GRPOConfig(objective="cispo", clip_low=None, clip_high=None, ratio_cap=5.0, aggregation="token-mean")

# Lite PPO, arXiv:2508.08221: deviation over the batch, mean over tokens.
LITE_PPO = GRPOConfig(scale="batch", aggregation="token-mean")

# DeepVideo-R1, arXiv:2506.07464 §C.1.
REG_GRPO = GRPOConfig(objective="regression", clip_low=None, clip_high=None, beta=0.1, kl="k3", kl_place="loss")

# arXiv:2505.24718, released code and script (commit 3abc3c3).
TW_GRPO = GRPOConfig(token_weight=1.7, clip_high=0.28, aggregation="token-mean")

# OneThinker, arXiv:2512.03043 §4.1; ε is GRPO's.
EMA_GRPO = GRPOConfig(scale="ema", ema_decay=DECAY, beta=0.01, kl="k3", kl_place="loss")

PROFILES: Mapping[str, GRPOConfig] = MappingProxyType(
    {
        "grpo": GRPO,
        "dr_grpo": DR_GRPO,
        "dapo": DAPO,
        "gspo": GSPO,
        "cispo": CISPO,
        "lite_ppo": LITE_PPO,
        "reg_grpo": REG_GRPO,
        "tw_grpo": TW_GRPO,
        "ema_grpo": EMA_GRPO,
    }
)
