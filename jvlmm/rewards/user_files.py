"""Rewards in a user's own file: `path/to/file.py:function`, in any of three signatures."""

import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jvlmm.data.example import Example
from jvlmm.data.prompts import lettered
from jvlmm.errors import ConfigError
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.graded import Graded, Grader, one_by_one, read_result, reason

SIGNATURES = (
    "(completion: str, example) -> float",
    "EasyR1's (reward_input: dict) -> dict, or (reward_inputs: list) -> list, in a file with REWARD_NAME and "
    'REWARD_TYPE = "sequential" or "batch"',
    "verl's (data_source, solution_str, ground_truth, extra_info) -> float or dict with score",
)

_VERL = ("data_source", "solution_str", "ground_truth", "extra_info")


def is_user_file(reward: str) -> bool:
    """Whether a reward names a file, not one of the registry."""
    return ".py" in reward


def load_user_reward(reward: str, arguments: Mapping[str, Any]) -> Grader:
    """The function named by `path/to/file.py:function`, called with `arguments` as keyword arguments beside its own.

    The file runs in this process: it is code, and trusted like a configuration file. Raises ConfigError naming file and
    line where it does not compile or run, the function is not there, or it has none of the `SIGNATURES`.
    """
    file, _, name = reward.rpartition(":")
    path = Path(file).expanduser()
    if not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"reward {reward!r} is not of the form path/to/file.py:function")
    module = _run(path)
    function = getattr(module, name, None)
    if not callable(function):
        lines = {k: v.__code__.co_firstlineno for k, v in vars(module).items() if isinstance(v, types.FunctionType)}
        there = ", ".join(f"{key} (line {line})" for key, line in lines.items())
        raise ConfigError(f"{path}: there is no function {name!r}; the file has {there or 'no functions'}")
    return _grader(module, function, arguments, f"{path}, line {_line(function)}: {name}")


def _run(path: Path) -> types.ModuleType:
    """The file's module, known to `sys.modules` as dataclasses in it require."""
    module = types.ModuleType(f"jvlmm_reward_{path.stem}")
    module.__file__ = str(path)
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise ConfigError(f"{path}: the reward file cannot be read ({error.strerror})") from None
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno or 1}: {error.msg}; mend the reward file") from None
    except ValueError as error:  # null bytes, before Python 3.12
        raise ConfigError(f"{path}, line 1: {error}; mend the reward file") from None
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: the reward file does not run: {reason(error, str(path))}") from error
    return module


def _grader(module: types.ModuleType, function: Callable, arguments: Mapping[str, Any], place: str) -> Grader:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ConfigError(f"{place} shows no signature; write it as a Python function") from None
    parameters = signature.parameters.values()
    names = {p.name for p in parameters} | {"extra_info" for p in parameters if p.kind is p.VAR_KEYWORD}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty and p.name not in arguments]
    call, file = partial(function, **arguments), module.__file__
    if names.issuperset(_VERL):
        given, grader = ((), dict.fromkeys(_VERL)), one_by_one(partial(_call_verl, call), "score", file)
    elif len(required) == 1 and (hasattr(module, "REWARD_NAME") or hasattr(module, "REWARD_TYPE")):
        given, grader = ((None,), {}), _easyr1(module, call, place)
    elif len(required) == 2:
        given, grader = ((None, None), {}), one_by_one(partial(_call_ours, call), None, file)
    else:
        given, grader = None, None
    if grader is None or inspect.iscoroutinefunction(function):
        raise ConfigError(f"{place}{signature} has none of the signatures allowed: {'; '.join(SIGNATURES)}")
    try:
        signature.bind(*given[0], **given[1], **arguments)
    except TypeError as error:
        raise ConfigError(f"{place}{signature} with arguments {dict(arguments)}: {error}") from None
    return grader


def _call_ours(function: Callable, completion: Completion, example: Example) -> Any:
    return function(completion.text, example)


def _call_verl(function: Callable, completion: Completion, example: Example) -> Any:
    """verl's reward managers pass all four by name; `extra_info` holds the row's other columns."""
    known = {"id": example.id, "question": example.question, "question_type": example.question_type}
    counted = {"num_tokens": completion.num_tokens, "finished": completion.finished}
    return function(
        data_source=str(example.meta.get("data_source", example.benchmark)),
        solution_str=completion.text,
        ground_truth=example.answer,
        extra_info={**example.meta, **known, **counted},
    )


_PROBLEM_TYPES = {  # EasyVideoR1's words, by which its reward files choose what to compute
    "mcq": "multiple choice",
    "yesno": "boolean",
    "number": "numerical",
    "text": "open-ended",
    "span": "temporal grounding",
    "boxes": "spatial grounding",
}


def _easyr1_input(completion: Completion, example: Example) -> dict[str, Any]:
    """EasyR1's three fields, EasyVideoR1's four, and all the row's own; a row's own type and id go before ours."""
    kinds = {media.type for media in example.media}
    known = {
        "data_type": "video" if "video" in kinds else "image" if kinds else "text",
        "problem_type": _PROBLEM_TYPES.get(example.answer_type),
        "problem": "\n".join([example.question, *lettered(example)]),
        "problem_id": example.id,
        "question_type": example.question_type,
    }
    own = {name: value for name, value in example.meta.items() if value is not None}
    return {
        **known,
        **own,
        "response": completion.text,
        "response_length": completion.num_tokens,
        "ground_truth": example.answer,
    }


def _easyr1(module: types.ModuleType, function: Callable, place: str) -> Grader:
    """EasyR1's function managers: `REWARD_TYPE` is batch where it is not given."""
    kind = getattr(module, "REWARD_TYPE", "batch")
    if kind == "sequential":
        return one_by_one(lambda *pair: function(_easyr1_input(*pair)), "overall", module.__file__)
    if kind != "batch":
        raise ConfigError(f'{place}: REWARD_TYPE = {kind!r} is unknown; allowed: "sequential" and "batch"')

    def grade(completions: Sequence[Completion], examples: Sequence[Example]) -> list[Graded]:
        inputs = [_easyr1_input(*pair) for pair in zip(completions, examples, strict=True)]
        try:
            results = list(function(inputs))
            if len(results) != len(inputs):
                raise ValueError(f"{len(results)} results for {len(inputs)} completions")
            return [read_result(result, "overall") for result in results]
        except Exception as error:
            return [Graded(0.0, failure=reason(error, module.__file__))] * len(inputs)

    return grade


def _line(function: Callable) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code else 1
