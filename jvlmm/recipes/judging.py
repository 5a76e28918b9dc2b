"""The judge of a stage's options: of rules, behind an endpoint, or the policy itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jvlmm.data.processor import Processor
from jvlmm.judges import rules
from jvlmm.judges.endpoint import EndpointJudge, EndpointOptions
from jvlmm.judges.own import Own, OwnJudge
from jvlmm.judges.verdict import Judge
from jvlmm.rollout.answers import Answers
from jvlmm.rollout.engine import Engine
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.exchange import Exchange
from jvlmm.sharding.hosts import process_count, process_index
from jvlmm.training.agreement import AgreedJudge
from jvlmm.training.hindsight_writing import HindsightOptions
from jvlmm.training.policy_preparation import PreparedPolicy

if TYPE_CHECKING:
    from jvlmm.recipes.reinforcing import GRPO


def check_judge(options: HindsightOptions) -> None:
    """Raises ConfigError for an endpoint that is to be asked for feedback, and does not answer."""
    if isinstance(options.judge, EndpointOptions) and "feedback" in options.lines and process_index() == 0:
        EndpointJudge(options.judge).check()


def judge_maker(stage: "GRPO", policy: PreparedPolicy, processor: Processor) -> Callable[[Any], Judge]:
    """Makes the judge of a step, of the parameters that are trained; several processes have one verdict."""
    options = stage.teaching.hindsight.judge
    if isinstance(options, Own):
        return _own(stage, policy, processor, options)
    judge = EndpointJudge(options) if isinstance(options, EndpointOptions) else rules.judge
    if process_count() > 1:
        judge = AgreedJudge(judge, Exchange(f"{stage.name} verdicts"))
    return lambda params: judge


def _own(stage: "GRPO", policy: PreparedPolicy, processor: Processor, options: Own) -> Callable[[Any], Judge]:
    """Every process computes with all others, and so has the same verdicts."""
    longest = stage.length_buckets[-1] + options.prompt_tokens
    asked = replace(processor.options, style="describe", max_length=longest)
    asking = Processor(processor.tokenizer, policy.rollout_config, asked, processor.decoder)
    of_prompt = replace(stage.of_prompt, length_buckets=(longest,))
    mesh, sampling = policy.meshes.rollout, SamplingOptions(max_tokens=options.max_tokens)
    engine = Engine(policy.rollout_config, processor.tokenizer, sampling, stage.rollout, of_prompt, mesh=mesh)
    features = VisualFeatures(policy.rollout_config, of_prompt, mesh=mesh)
    return lambda params: OwnJudge(Answers(policy.sampler(params), asking, engine, features))
