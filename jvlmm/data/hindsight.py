"""What a teacher reads beyond the student's prompt: hindsight, and the student's own completion after it.

The block stands at the end of the user's turn, so that all before it (instructions, question, media) is the student's
own prompt, token for token: read once for all rollouts, whose hindsight may differ.
"""

from collections.abc import Sequence as Sized
from dataclasses import dataclass

import numpy as np

from jvlmm.data.coordinates import whole_numbers
from jvlmm.data.example import Example
from jvlmm.data.groups import Rollout
from jvlmm.data.positions import next_position
from jvlmm.data.sequence import Sequence
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import DataError

HEADER = "Hidden hindsight, for supervision only:"
LEAKS = ("hindsight", "verified", "feedback")
"""Words of the block that a student's rollout should not quote."""


@dataclass(frozen=True)
class Hindsight:
    """The lines of a block, most important first; one that is "" is not there."""

    answer: str = ""
    demonstration: str = ""  # a right response to the question
    window: tuple[float, float] | None = None  # seconds
    moments: tuple[float, ...] = ()  # seconds, of the key frames
    feedback: str = ""

    def lines(self) -> list[str]:
        """Without the header."""
        found = []
        if self.answer:
            found.append(f"Verified answer: {self.answer}")
        if self.demonstration:
            found.append(f"A right response: {self.demonstration}")
        if self.window is not None:
            found.append("Verified time window: {:.1f}s to {:.1f}s".format(*self.window))
        if self.moments:
            found.append("Key frames at: " + ", ".join(f"{time:.1f}s" for time in self.moments))
        if self.feedback:
            found.append(f"Corrective feedback: {self.feedback}")
        return found


def block_text(lines: Sized[str]) -> str:
    """The block of `Hindsight.lines` as it follows the question; "" of no lines.

    Begins with a space, as a line break would join the full stop before it to one token.
    """
    return " " + "\n".join([HEADER, *lines]) if lines else ""


def block_tokens(hindsight: Hindsight, tokenizer: ChatTokenizer, limit: int) -> np.ndarray:
    """int32 [n <= limit]: the block. Lines are left out from the last on until it fits; nothing where none is left."""
    lines = hindsight.lines()
    while lines:
        tokens = tokenizer.encode(block_text(lines))
        if len(tokens) <= limit:
            return tokens
        lines.pop()
    return np.zeros(0, np.int32)


def split_prompt(prompt: Sequence, tokenizer: ChatTokenizer) -> tuple[Sequence, np.ndarray]:
    """(the prompt without its end, that end): the end closes the user's turn and opens the assistant's.

    Raises DataError for a prompt without an end of turn.
    """
    ends = np.flatnonzero(prompt.tokens == tokenizer.eos_id)
    if not len(ends):
        raise DataError(f"{prompt.id}: the prompt holds no end of a turn, so hindsight has no place in it")
    length = int(ends[-1])
    tail, positions = prompt.tokens[length:], prompt.positions[:, :length]
    kept = Sequence(
        id=prompt.id,
        tokens=prompt.tokens[:length],
        positions=positions,
        loss_mask=prompt.loss_mask[:length],
        visual_index=prompt.visual_index[:length],
        patches=prompt.patches,
        next_position=int(next_position(positions, np.int32(length))),
        shown=prompt.shown,
        coordinates=prompt.coordinates,
    )
    return kept, tail


def privileged(
    rollouts: Sized[Rollout], blocks: Sized[np.ndarray], tail: np.ndarray
) -> tuple[list[Rollout], np.ndarray]:
    """(what follows the shared prompt of each rollout: its block, the end of the turn and the completion;
    int32 [G], where in it the completion begins)."""
    followed = []
    for rollout, block in zip(rollouts, blocks, strict=True):
        tokens = np.concatenate([block, tail, rollout.tokens]).astype(np.int32)
        nothing = np.zeros(len(tokens), np.float32)
        followed.append(Rollout(tokens, nothing, nothing, rollout.finished))
    return followed, np.array([len(block) + len(tail) for block in blocks], np.int32)


def hindsight_of(example: Example, moments: Sized[float], feedback: str, demonstration: str = "") -> Hindsight:
    """What the question's ground truth gives, with the times of its evidence and a judge's advice on one rollout."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    answer = whole_numbers(example.answer) if example.answer_type == "boxes" else example.answer
    if example.answer_type == "mcq" and answer in letters[: len(example.options)]:
        answer = f"{answer}. {example.options[letters.index(answer)]}"
    return Hindsight(answer, demonstration, _window(example), tuple(moments), feedback)


def _window(example: Example) -> tuple[float, float] | None:
    """`meta["window"]`, the seconds that the answer is found in; None where the row brought none that can be read."""
    try:
        start, end = map(float, example.meta["window"])
    except (KeyError, TypeError, ValueError):
        return None
    return start, end
