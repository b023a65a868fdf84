from __future__ import annotations

from xml.etree import ElementTree

import pytest

from llmdistill.observe.report.svg import (
    STYLE_COUNT,
    Axis,
    Estimate,
    Series,
    dot_plot,
    histogram,
    line_chart,
    marker,
    short_number,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 84, [0, 25, 50, 75]),
        (1.9, 11.2, [2.5, 5, 7.5, 10]),
        (-3, 3, [-2, 0, 2]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1250, "1,250"), (2.5e-4, "2.5e-4"), (3e6, "3e6"), (12.34, "12.34")]
)
def test_numbers_on_axes(value: float, text: str) -> None:
    assert short_number(value) == text


def coordinates(chart: str) -> list[list[tuple[float, float]]]:
    tree = ElementTree.fromstring(str(chart))
    return [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in tree.iter("polyline")
    ]


def test_long_lines_are_averaged_and_the_label_says_so() -> None:
    points = [(step, 1.0 if step % 2 else 3.0) for step in range(1, 1201)]
    chart = line_chart("loss", "step", [Series("a", 0, points)])
    (line,) = coordinates(chart)
    assert len(line) == 300
    assert "step, means of 4" in chart
    assert max(y for _, y in line) - min(y for _, y in line) < 0.2  # every group of 4 has the mean 2


def test_a_constant_line_and_a_single_point_can_be_drawn() -> None:
    (line,) = coordinates(line_chart("rate", "step", [Series("a", 0, [(1, 0.0), (2, 0.0)])]))
    assert line[0][1] == line[1][1]
    assert coordinates(line_chart("rate", "step", [Series("a", 0, [(1, 5.0)])]))


def test_text_is_escaped_and_every_chart_is_well_formed() -> None:
    rows = [("<&>", [Estimate(0, 1.0, (0.5, 2.0)), Estimate(1, 1.5, None)])]
    chart = dot_plot("a < b", "x & y", rows, [("<s>", 0)])
    tree = ElementTree.fromstring(str(chart))
    assert "<&>" in [text.text for text in tree.iter("text")]
    bars = list(ElementTree.fromstring(str(histogram("h", "x", [0, 1, 2], [3, 1]))).iter("rect"))
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    points = [(1, 2.0), (2, float("inf")), (3, float("nan")), (4, 1.0)]
    chart = line_chart("gradient norm", "step", [Series("a", 0, points)])
    assert len(coordinates(chart)[0]) == 2
    assert "step, 2 not finite" in chart
    nothing = line_chart("gradient norm", "step", [Series("a", 0, points[1:3])])
    assert "step, 2 not finite" in nothing


def test_styles_differ_by_marker() -> None:
    assert len({marker(style, 0.0, 0.0).partition(" d=")[2] for style in range(STYLE_COUNT)}) == STYLE_COUNT
