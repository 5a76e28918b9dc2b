"""Entropy along an answer: the mean over questions with its band, and how near a steered curve is to the wanted one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jvlmm.errors import ConfigError

_Z = 1.959964  # of 95 % under the normal distribution
_WINDOW = 9  # tokens of the centred running mean that peak and end are read from
_LEAST = 1e-3  # nats: what is lower counts as this in a ratio


@dataclass(frozen=True)
class Curve:
    """Nats of token 1, 2, …, T, as long as half of the questions go on: float64 [T] each, and the questions in all."""

    mean: np.ndarray
    half_width: np.ndarray  # of the 95 % band of the mean; 0 where one question is left
    questions: int

    @property
    def smooth(self) -> np.ndarray:
        """The centred running mean [T] of `mean`, over fewer tokens at both ends."""
        ones = np.ones(_WINDOW)
        inner = slice(_WINDOW // 2, _WINDOW // 2 + len(self.mean))
        return np.convolve(self.mean, ones)[inner] / np.convolve(np.ones_like(self.mean), ones)[inner]

    @property
    def peak(self) -> float:
        """The highest value of the smooth curve."""
        return float(self.smooth.max())

    @property
    def end(self) -> float:
        """The last value of the smooth curve."""
        return float(self.smooth[-1])


def curve_of(entropies: Sequence[Sequence[float]]) -> Curve:
    """The curve of answers given as the entropies of their tokens, at least one each. ConfigError without answers."""
    if not entropies:
        raise ConfigError("there are no entropies to make a curve of; trace answers to questions that have a video")
    lengths = np.array([len(answer) for answer in entropies])
    length = np.sort(lengths)[len(lengths) // 2]
    table = np.full((len(lengths), length), np.nan)
    for row, answer in zip(table, entropies, strict=True):
        row[: len(answer)] = answer[:length]
    count = (lengths[:, None] > np.arange(length)).sum(axis=0)
    mean = np.nanmean(table, axis=0)
    squares = np.nansum(np.square(table - mean), axis=0)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    return Curve(mean, _Z * deviation / np.sqrt(count), len(lengths))


@dataclass(frozen=True)
class CurveTarget:
    """Peak and end of the steered curve over those of the plain one, as the paper's plots of 7B show them.

    They are read off the plots: plain decoding peaks at 1.25 nats and stands at 0.85 where its curve ends; V-Reason
    peaks at 0.90 and ends at 0.32. That the ratios hold for other models, whose nats differ, is our inference.
    """

    peak: float = 0.72
    end: float = 0.38

    def __post_init__(self) -> None:
        for name in ("peak", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"target.{name}={getattr(self, name)!r} is not allowed; give a positive ratio")

    def distance(self, steered: Curve, plain: Curve) -> float:
        """√(ln² of how far the ratio of the peaks is from `peak` + the same of the ends): 0 is the target.

        Logarithms count half and twice of a wanted ratio alike. ConfigError where the plain curve is flat at 0.
        """
        if plain.peak < _LEAST:
            raise ConfigError(
                f"plain decoding has an entropy of {plain.peak:.4f} nats at its peak; there is nothing to lower, so "
                "leave V-Reason off for this model"
            )
        ratio = lambda of, to: max(of, _LEAST) / max(to, _LEAST)  # noqa: E731
        peak, end = ratio(steered.peak, plain.peak), ratio(steered.end, plain.end)
        return math.hypot(math.log(peak / self.peak), math.log(end / self.end))
