"""Ask every example, score every answer, write every prediction."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from jvlmm.data.coordinates import as_answered
from jvlmm.data.example import Example
from jvlmm.data.fingerprint import example_digest
from jvlmm.data.rejections import Rejected, attempted
from jvlmm.errors import ConfigError
from jvlmm.evaluation.manifest import manifest_entry
from jvlmm.evaluation.metrics import summarize
from jvlmm.evaluation.predictions import Answered, Prediction, PredictionWriter
from jvlmm.judges.free_text import Scorer
from jvlmm.rewards.scoring import Score, score
from jvlmm.rollout.answers import Answers
from jvlmm.rollout.generator import Generator, Response

Protocol = Literal["direct", "think"]


def evaluate(
    generator: Generator | Answers,
    examples: Sequence[Example],
    predictions_path: str | Path,
    protocol: Protocol = "direct",
    unusable: Sequence[Rejected] = (),
    scorer: Scorer | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_response: Callable[[Response], None] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Figures of `summarize` with a `manifest`; predictions go to `predictions_path` in the order of `examples`.

    `direct` scores the answer wherever it stands; under `think` an answer counts only inside
    `<think>…</think><answer>…</answer>`. A row that cannot be asked or scored is wrong, and listed with its reason;
    so are the rows of `unusable`, of which no example could be made: their question type is `unusable`, their answer
    type the one they name. `scorer` scores free texts otherwise than by equality; predictions it has scored name it.
    `reduced` counts the rows of which fewer frames or pixels were shown than asked for; their predictions tell which.
    `on_progress` is told (rows done, rows in all), `on_response` every response as it comes. With `resume` an
    evaluation of the same model, in the same way, that was interrupted with the same `predictions_path` goes on: only
    the rows that it had not answered, and those that failed, are asked. Raises DataError where the predictions cannot
    be written.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"protocol {protocol!r} is unknown; choose one of {', '.join(get_args(Protocol))}")
    scorer = scorer or Scorer()
    scorer.check()
    manifest = manifest_entry(generator, protocol) | {"free_text": scorer.described()}
    predictions: dict[int, Prediction] = {}
    waiting: dict[int, tuple[Prediction, Response]] = {}

    def write_waiting() -> None:
        asked = [examples[row] for row in waiting]
        scored = with_free_text([prediction for prediction, _ in waiting.values()], asked, protocol, scorer)
        for (row, (_, response)), example, prediction in zip(waiting.items(), asked, scored, strict=True):
            predictions[row] = prediction
            writer.write(row, example_digest(example), Answered(prediction, response.tokens, response.control))
            if on_progress:
                on_progress(len(predictions), len(examples))
        waiting.clear()

    with PredictionWriter(predictions_path, manifest if resume else None) as writer:
        # What was answered before counts, and is told as if it came now.
        for row, (digest, answered) in sorted(writer.answered.items()):
            if row < len(examples) and example_digest(examples[row]) == digest:
                predictions[row] = answered.prediction
                writer.keep(row, answered.prediction)
                if on_response:
                    on_response(_response_again(answered))
        if predictions:
            print(f"{writer.path}: goes on after {len(predictions)} answers", file=sys.stderr, flush=True)

        # The others are asked, scored as many at a time as the scorer likes, and written at once.
        rest = [row for row in range(len(examples)) if row not in predictions]
        for number, response in generator.stream([examples[row] for row in rest] if predictions else examples):
            row = rest[number]
            waiting[row] = predict(examples[row], response, protocol), response
            if on_response:
                on_response(response)
            if len(waiting) >= scorer.at_once:
                write_waiting()
        write_waiting()

        for row, rejected in enumerate(unusable, start=len(examples)):
            nothing = Example(rejected.id, "", "", "text", question_type="unusable")
            failed = predict(nothing, Response(rejected.id, error=rejected.message), protocol)
            predictions[row] = replace(failed, answer_type=rejected.answer_type)
            writer.keep(row, predictions[row])
    figures = summarize([predictions[row] for row in sorted(predictions)])
    reduced = sum(any("asked_frames" in m or "asked_size" in m for m in p.media) for p in predictions.values())
    return {**figures, "reduced": reduced, "protocol": protocol, "manifest": manifest}


def predict(example: Example, response: Response, protocol: Protocol) -> Prediction:
    """The scored record of one response."""
    result, error, answered = None, response.error, example
    if error is None:
        result = attempted(example, lambda example: _scored(example, response, protocol))
    if isinstance(result, Rejected):
        result, error = None, result.reason
    elif result is not None:
        answered, result = result
    return Prediction(
        id=example.id,
        question_type=example.question_type,
        answer_type=example.answer_type,
        question=example.question,
        options=example.options,
        gold=example.answer,
        coordinates={"gold": example.coordinates or "file", "raw": response.coordinates},
        gold_as_answered=answered.answer if answered.answer != example.answer else None,
        raw=response.text,
        parsed=result.parsed if result else None,
        parse_method=result.method if result else None,
        correct=result.correct if result else False,
        score=result.value if result else 0.0,
        format_ok=result.format_ok if result else False,
        finished=response.finished,
        frames=response.frames,
        times=tuple(medium.times for medium in response.media),
        media=tuple(medium.described() for medium in response.media),
        visual_tokens=response.visual_tokens,
        text_tokens=response.text_tokens,
        output_tokens=len(response.tokens),
        latency_s=round(response.latency_s, 4),
        error=error,
    )


def with_free_text(
    predictions: Sequence[Prediction], examples: Sequence[Example], protocol: Protocol, scorer: Scorer
) -> list[Prediction]:
    """The predictions with the scorer's value of free texts; one it has no value for is wrong, and says why.

    A response without the form that `think` asks for is worth nothing, and the scorer is not asked.
    """
    found = list(predictions)
    asked = [
        at
        for at, (prediction, example) in enumerate(zip(predictions, examples, strict=True))
        if scorer.name_for(example) and prediction.error is None and (prediction.format_ok or protocol == "direct")
    ]
    if not asked:
        return found
    values = scorer([predictions[at].raw for at in asked], [examples[at] for at in asked])
    for at, value in zip(asked, values, strict=True):
        changed = {"scored_by": scorer.name_for(examples[at])}
        if isinstance(value, str):
            changed |= {"score": 0.0, "correct": False, "error": f"{examples[at].id}: {value}"}
        else:
            changed |= {"score": value, "correct": value >= scorer.options.threshold}
        found[at] = replace(found[at], **changed)
    return found


def _response_again(answered: Answered) -> Response:
    """The response of a row that was answered before, without what only its prediction needs."""
    prediction = answered.prediction
    return Response(
        id=prediction.id,
        text=prediction.raw,
        tokens=answered.tokens,
        finished=prediction.finished,
        frames=prediction.frames,
        visual_tokens=prediction.visual_tokens,
        text_tokens=prediction.text_tokens,
        latency_s=prediction.latency_s,
        control=answered.control,
    )


def _scored(example: Example, response: Response, protocol: Protocol) -> tuple[Example, Score]:
    """The example with its boxes in the coordinates of the response, and what the response is worth against it."""
    answered = as_answered(example, response.coordinates, response.media)
    return answered, score(response.text, answered, require_format=protocol == "think")
