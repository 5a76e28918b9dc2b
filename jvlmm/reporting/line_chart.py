"""Curves with bands as an SVG file, which any browser shows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 48, 52  # margins
_ROW = 16  # height of a row of the legend
_COLOURS = ("#3b6fb6", "#d1603d", "#3f8f5b", "#8b5fb0", "#b08a2e", "#5f6b76")


@dataclass(frozen=True)
class Line:
    """Values at x = 1, 2, …, and half the width of the band around each."""

    mean: Sequence[float]
    half_width: Sequence[float]


def line_chart(lines: Mapping[str, Line], title: str, x_label: str, y_label: str) -> str:
    """The lines under their names, each with at least one value; the y axis begins at 0, where bands are cut."""
    last = max(len(line.mean) for line in lines.values())
    top = max(m + h for line in lines.values() for m, h in zip(line.mean, line.half_width, strict=True)) or 1.0
    x_ticks, y_ticks = _ticks(last), _ticks(top)
    top = max(top, y_ticks[-1])
    x_of = lambda x: _LEFT + (x - 1) / max(last - 1, 1) * (_WIDTH - _LEFT - _RIGHT)  # noqa: E731
    places = _legend(lines)
    above = _TOP + _ROW * places[-1][1]
    y_of = lambda y: _HEIGHT - _BOTTOM - max(y, 0.0) / top * (_HEIGHT - above - _BOTTOM)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 18, title, 'font-weight="bold"'),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_label, 'text-anchor="middle"'),
        _text(0, 0, y_label, f'text-anchor="middle" transform="translate(16 {_HEIGHT / 2 - 4:g}) rotate(-90)"'),
    ]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e4e4e4"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", 'text-anchor="end"'))
    for tick in (max(tick, 1) for tick in x_ticks):
        parts.append(_text(x_of(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}", 'text-anchor="middle"'))
    for number, ((name, line), (x, row)) in enumerate(zip(lines.items(), places, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _drawn(line, colour, x_of, y_of)
        parts.append(f'<path d="M{x} {32 + _ROW * row}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(x + 24, 36 + _ROW * row, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(names: Iterable[str]) -> list[tuple[int, int]]:
    """(x, row) of each name, by a guess at its width."""
    places, x, row = [], _LEFT, 0
    for name in names:
        width = 44 + 7 * len(name)
        if x > _LEFT and x + width > _WIDTH:
            x, row = _LEFT, row + 1
        places.append((x, row))
        x += width
    return places


def _drawn(line: Line, colour: str, x_of, y_of) -> list[str]:
    """The band and the line over it."""
    points = list(enumerate(zip(line.mean, line.half_width, strict=True), start=1))
    path = lambda of: [f"{x_of(x):.1f},{y_of(of(*value)):.1f}" for x, value in points]  # noqa: E731
    around = path(lambda mean, half: mean + half) + path(lambda mean, half: mean - half)[::-1]
    middle = path(lambda mean, half: mean)
    return [
        f'<polygon points="{" ".join(around)}" fill="{colour}" fill-opacity="0.18"/>',
        f'<polyline points="{" ".join(middle)}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
    ]


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _ticks(top: float) -> list[float]:
    """0 and further round numbers up to `top`, three to six in all."""
    power = 10 ** math.floor(math.log10(top))
    step = next(step for step in (0.2 * power, 0.5 * power, power, 2 * power, 5 * power) if top / step < 6)
    return [round(number * step, 12) for number in range(int(top / step) + 1)]
