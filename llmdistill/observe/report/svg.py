"""Charts as inline SVG that take colours and fonts from the page: they follow its dark mode and print.

Series differ by dash and marker too, so that nothing depends on colour. Numbers are placed in a box of 360 × 220 units,
which is about a phone's width in pixels, so that text keeps its size there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup, escape

STYLE_COUNT = 8
WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 26, 36
_POINTS = 300


@dataclass(frozen=True)
class Series:
    """Points of one line."""

    name: str
    style: int
    """Number of its style in the page, below `STYLE_COUNT`: class `s0` … `s7`."""
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    style: int
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from values to the box."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values, about five."""
        if self.log:
            return [10.0**power for power in range(math.ceil(math.log10(self.low)), int(math.log10(self.high)) + 1)]
        rough = (self.high - self.low) / 4
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, x_label: str, series: Sequence[Series], y_from_zero: bool = False) -> Markup:
    """Lines over a common x; long ones are averaged down to some hundred points, which the label says.

    Values that are infinite or no number (a gradient norm of a skipped step) are left out and counted in the label.
    """
    given = [point for line in series for point in line.points]
    series = [replace(line, points=[point for point in line.points if math.isfinite(point[1])]) for line in series]
    values = [point[1] for line in series for point in line.points]
    left_out = len(given) - len(values)
    x = _axis([point[0] for point in given], _LEFT, WIDTH - _RIGHT)
    y = _axis([*values, *([0.0] if y_from_zero or not values else [])], HEIGHT - _BOTTOM, _TOP, padded=True)
    group = max(math.ceil(max(len(line.points) for line in series) / _POINTS), 1)
    averaged = f", means of {group}" if group > 1 else ""
    parts = [_frame(x, y, x_label + averaged + (f", {left_out} not finite" if left_out else ""))]
    for line in series:
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in _averaged(line.points, group))
        parts.append(f'<polyline class="line s{line.style}" points="{path}"/>')
    return _svg(title, parts, [(line.name, line.style) for line in series] if len(series) > 1 else [])


def histogram(title: str, x_label: str, edges: Sequence[float], counts: Sequence[int]) -> Markup:
    """Bars between neighbouring edges, as shares of all."""
    total = max(sum(counts), 1)
    x = Axis(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    y = Axis(0, max(counts) / total * 1.08 or 1, HEIGHT - _BOTTOM, _TOP)
    bars = [
        f'<rect class="bar" x="{x.at(a) + 0.5:.1f}" y="{y.at(count / total):.1f}"'
        f' width="{max(x.at(b) - x.at(a) - 1, 0.5):.1f}" height="{y.at(0) - y.at(count / total):.1f}"/>'
        for (a, b), count in zip(pairwise(edges), counts, strict=True)
        if count
    ]
    return _svg(title, [_frame(x, y, x_label, percent=True), *bars], [])


def dot_plot(
    title: str, x_label: str, rows: Sequence[tuple[str, Sequence[Estimate]]], legend: Sequence[tuple[str, int]]
) -> Markup:
    """One row a group, with a marker and an interval for each estimate."""
    ends = [value for _, row in rows for item in row for value in (item.value, *(item.interval or ()))]
    left = 12 + 6.0 * max(len(name) for name, _ in rows)
    low = 0.0 if min(ends) >= 0 else min(ends)
    x = Axis(low, (max(ends) - low) * 1.05 + low or 1, min(left, WIDTH / 2), WIDTH - _RIGHT)
    step = 12 * max(len(row) for _, row in rows) + 8
    height = _TOP + step * len(rows) + _BOTTOM
    parts = [_x_axis(x, height - _BOTTOM, _TOP, x_label)]
    for number, (name, row) in enumerate(rows):
        top = _TOP + number * step
        parts.append(f'<text class="label" x="{x.start - 8:.0f}" y="{top + step / 2 + 4:.1f}">{escape(name)}</text>')
        for index, item in enumerate(row):
            y = top + step / 2 + 12 * (index - (len(row) - 1) / 2)
            if item.interval:
                a, b = (x.at(value) for value in item.interval)
                parts.append(f'<path class="whisker s{item.style}" d="M{a:.1f} {y:.1f}H{b:.1f}"/>')
            parts.append(marker(item.style, x.at(item.value), y))
    return _svg(title, parts, legend, height)


def reliability_chart(title: str, curves: Sequence[Series]) -> Markup:
    """Accuracy over confidence; on the diagonal a model is right as often as it is sure."""
    x, y = Axis(0, 1, _LEFT, WIDTH - _RIGHT), Axis(0, 1, HEIGHT - _BOTTOM, _TOP)
    diagonal = f'<path class="diagonal" d="M{x.at(0)} {y.at(0)}L{x.at(1)} {y.at(1)}"/>'
    parts = [_frame(x, y, "confidence (vertical: share that was right)"), diagonal]
    for curve in curves:
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in curve.points)
        parts.append(f'<polyline class="line s{curve.style}" points="{path}"/>')
        parts += [marker(curve.style, x.at(a), y.at(b)) for a, b in curve.points]
    return _svg(title, parts, [(curve.name, curve.style) for curve in curves])


def marker(style: int, x: float, y: float) -> str:
    """Disc, square, triangle, diamond, small disc, triangle upside down, cross and bar, by style."""
    shapes = (
        f"M{x - 3.6:.1f} {y:.1f}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0",
        f"M{x - 3.2:.1f} {y - 3.2:.1f}h6.4v6.4h-6.4z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4-4.4z",
        f"M{x - 2.8:.1f} {y:.1f}a2.8 2.8 0 1 0 5.6 0a2.8 2.8 0 1 0-5.6 0",
        f"M{x:.1f} {y + 4:.1f}l4-7h-8z",
        f"M{x - 3:.1f} {y - 3:.1f}l6 6m-6 0l6-6",
        f"M{x:.1f} {y - 4.5:.1f}v9",
    )
    return f'<path class="marker s{style}" d="{shapes[style]}"/>'


def short_number(value: float) -> str:
    """A number as an axis shows it."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _averaged(points: Sequence[tuple[float, float]], group: int) -> list[tuple[float, float]]:
    if group == 1:
        return list(points)
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _axis(values: Sequence[float], start: float, end: float, padded: bool = False) -> Axis:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 if high > low else abs(high) * 0.1 or 1
    if padded or high == low:
        low, high = low - (room if low else 0), high + room
    return Axis(low, high, start, end)


def _frame(x: Axis, y: Axis, x_label: str, percent: bool = False) -> str:
    lines = []
    for value in y.ticks():
        at = y.at(value)
        text = f"{value * 100:.3g} %" if percent else short_number(value)
        lines.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        lines.append(f'<text class="tick end" x="{_LEFT - 5}" y="{at + 3.5:.1f}">{text}</text>')
    return "".join(lines) + _x_axis(x, y.start, y.start, x_label)


def _x_axis(x: Axis, bottom: float, top: float, label: str) -> str:
    parts = [f'<path class="axis" d="M{x.start:.1f} {bottom:.1f}H{x.end:.1f}"/>']
    for value in x.ticks():
        at = x.at(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom:.1f}V{top:.1f}"/>')
        parts.append(f'<text class="tick middle" x="{at:.1f}" y="{bottom + 14:.1f}">{short_number(value)}</text>')
    middle = (x.start + x.end) / 2
    parts.append(f'<text class="axis-label" x="{middle:.1f}" y="{bottom + 29:.1f}">{escape(label)}</text>')
    return "".join(parts)


def _svg(title: str, parts: Sequence[str], legend: Sequence[tuple[str, int]], height: float = HEIGHT) -> Markup:
    drawn, x, y = [], 8.0, 10.0
    for name, style in legend:
        if x + 30 + 6.1 * len(name) > WIDTH and x > 8:
            x, y = 8.0, y + 15
        drawn.append(f'<path class="line s{style}" d="M{x:.0f} {y:.0f}h20"/>{marker(style, x + 10, y)}')
        drawn.append(f'<text class="legend" x="{x + 25:.0f}" y="{y + 4:.0f}">{escape(name)}</text>')
        x += 38 + 6.1 * len(name)
    top, extra = 0 if legend else _TOP - 8, y - 10
    body = f'<g transform="translate(0 {extra:.0f})">{"".join(parts)}</g>' if extra else "".join(parts)
    return Markup(
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 {top} {WIDTH} {height + extra - top:.0f}"'
        f' role="img"'
        f' aria-label="{escape(title)}">{"".join(drawn)}{body}</svg></figure>'
    )
