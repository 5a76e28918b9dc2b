"""Examples and completions for tests of rewards."""

from jvlmm.data.example import Example
from jvlmm.rewards.completion import Completion


def ask(answer_type, answer, options=(), **fields):
    return Example("q1", "question?", answer, answer_type, options=options, **fields)


def say(answer, num_tokens=10, finished=True):
    return Completion(f"<think>so</think><answer>{answer}</answer>", num_tokens, finished)
