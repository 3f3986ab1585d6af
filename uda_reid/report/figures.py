"""Geometry of the page's figures: data in, positions for the template's SVG out; no colours, no text sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Unit = Literal["percent", "number"]
Points = Sequence[tuple[float, float]]

SAME = 5e-4
"""Average precisions that differ by less (0.05 points) count as the same."""
CROSS = "m-3,-3l6,6m-6,0l6,-6"
MARKS = 12
"""A curve has at most so many marks, evenly spaced: they tell curves apart where colours do not."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the figure's units, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point that tells its value."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A named curve; `style` counts the looks that tell curves apart."""

    name: str
    style: int
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Level:
    """A named horizontal line, in the style of the curve that it belongs to."""

    name: str
    style: int
    y: float


@dataclass(frozen=True)
class Frame:
    """The area that data is drawn in: where its edges are, in the figure's units, and which values they stand for."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Return where a value lies from left to right."""
        return _between(value, self.x_range, self.left, self.right)

    def y(self, value: float) -> float:
        """Return where a value lies from top to bottom."""
        return _between(value, self.y_range, self.bottom, self.top)


@dataclass(frozen=True)
class Chart:
    """Curves over steps."""

    name: str
    unit: Unit
    description: str
    frame: Frame
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Scatter:
    """Average precision of every query after adaptation over the one before."""

    frame: Frame
    ticks: tuple[tuple[Tick, Tick], ...]
    better: str
    worse: str
    same: str
    counts: tuple[int, int, int]
    description: str


@dataclass(frozen=True)
class Group:
    """Points that belong together; `hue` in degrees tells them apart, None for those that only stand around."""

    name: str
    path: str
    hue: int | None
    crosses: bool


@dataclass(frozen=True)
class Cloud:
    """Points of a map, in groups."""

    name: str
    side: int
    groups: tuple[Group, ...]


def line_chart(
    name: str,
    curves: Mapping[str, Points],
    *,
    x_label: str,
    unit: Unit,
    levels: Mapping[str, tuple[float, int]] | None = None,
) -> Chart | None:
    """Lay out curves over whole steps; the vertical axis contains 0.

    Args:
        name: what is shown.
        curves: name -> (step, value); values that are not finite leave a gap.
        x_label: what the steps are.
        unit: `percent` shows fractions in percent; `number` shows numbers as they are.
        levels: name -> (value, number of the curve it belongs to): horizontal lines.

    Returns:
        The chart, or None where there is no finite value.
    """
    finite = {key: [(x, y) for x, y in points if math.isfinite(y)] for key, points in curves.items()}
    levels = {key: level for key, level in (levels or {}).items() if math.isfinite(level[0])}
    values = [y for points in finite.values() for _, y in points] + [value for value, _ in levels.values()]
    steps = [x for points in finite.values() for x, _ in points]
    if not steps:
        return None
    frame, x_ticks, y_ticks = _axes(steps, values, 100 if unit == "percent" else 1)
    return Chart(
        name=name,
        unit=unit,
        description="; ".join(_told(key, points, unit) for key, points in finite.items() if points),
        frame=frame,
        x_label=x_label,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        curves=tuple(
            _curve(key, style, points, frame, unit, x_label)
            for style, (key, points) in enumerate(curves.items())
            if finite[key]
        ),
        levels=tuple(Level(key, style, frame.y(value)) for key, (value, style) in levels.items()),
    )


def _axes(
    steps: Sequence[float], values: Sequence[float], scale: float
) -> tuple[Frame, tuple[Tick, ...], tuple[Tick, ...]]:
    y_values = nice_ticks(min(0, *values) * scale, max(0, *values) * scale)
    x_values = [value for value in nice_ticks(min(steps), max(steps), whole=True) if value <= max(steps)]
    x_range = (min(min(steps), x_values[0]), max(steps)) if len(set(steps)) > 1 else (steps[0] - 1, steps[0] + 1)
    frame = Frame(420, 244, 46, 408, 12, 200, x_range, (y_values[0] / scale, y_values[-1] / scale))
    x_ticks = tuple(Tick(frame.x(value), _plain(value)) for value in x_values)
    return frame, x_ticks, tuple(Tick(frame.y(value / scale), _plain(value)) for value in y_values)


def _curve(name: str, style: int, points: Points, frame: Frame, unit: Unit, x_label: str) -> Curve:
    path, draws = "", False
    for x, y in points:
        if math.isfinite(y):
            path += f"{'L' if draws else 'M'}{frame.x(x):g},{frame.y(y):g}"
        draws = math.isfinite(y)
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    chosen = finite[:: -math.ceil(len(finite) / MARKS)]  # from the last one on, which matters most
    marks = (((frame.x(x), frame.y(y)), (x, y)) for x, y in chosen)
    return Curve(
        name, style, path, tuple(Mark(*at, f"{name} {shown(y, unit)}, {x_label}: {x:g}") for at, (x, y) in marks)
    )


def _told(name: str, points: Points, unit: Unit) -> str:
    if len(points) == 1:
        return f"{name}: {shown(points[0][1], unit)}"
    (first, start), (last, end) = points[0], points[-1]
    return f"{name}: from {shown(start, unit)} at {first:g} to {shown(end, unit)} at {last:g}"


def scatter(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Scatter | None:
    """Lay out one point per query that is counted in both.

    Args:
        before: (Q,) average precision in [0, 1], NaN where not counted.
        after: (Q,) the same after adaptation.

    Returns:
        The figure, or None where no query is counted.
    """
    counted = np.isfinite(before) & np.isfinite(after)
    if not counted.any():
        return None
    change = after - before
    better, worse = counted & (change >= SAME), counted & (change <= -SAME)
    parts = better, worse, counted & ~better & ~worse
    frame = Frame(366, 360, 46, 350, 10, 314, (0.0, 1.0), (0.0, 1.0))
    paths = [_dots(zip(before[part].tolist(), after[part].tolist(), strict=True), frame) for part in parts]
    counts = tuple(int(part.sum()) for part in parts)
    return Scatter(
        frame,
        tuple(
            (Tick(frame.x(value / 100), f"{value}"), Tick(frame.y(value / 100), f"{value}"))
            for value in range(0, 101, 20)
        ),
        better=paths[0],
        # A cross and not a dot: by its form, not by its colour alone.
        worse=paths[1].replace("h0", CROSS),
        same=paths[2],
        counts=(counts[0], counts[1], counts[2]),
        description=f"{counts[0]} queries better, {counts[1]} worse, {counts[2]} the same",
    )


def _dots(points: Iterable[tuple[float, float]], frame: Frame) -> str:
    return "".join(f"M{frame.x(x):.1f},{frame.y(y):.1f}h0" for x, y in points)


def cloud(name: str, positions: Points, groups: Mapping[str, Sequence[int]], *, around: str = "") -> Cloud:
    """Lay out points of a map in groups, every second of which has crosses and not dots.

    Args:
        name: what is shown.
        positions: of every point, in [0, 1].
        groups: name -> numbers of its points.
        around: the name of the group that only stands around the others, if any.
    """
    frame = Frame(300, 300, 8, 292, 8, 292, (0.0, 1.0), (0.0, 1.0))
    coloured = [key for key in groups if key != around]
    found = []
    for key, rows in groups.items():
        path = _dots((positions[row] for row in rows), frame)
        number = coloured.index(key) if key in coloured else 0
        crosses = number % 2 == 1
        hue = round(210 + 360 * number / len(coloured)) % 360 if key in coloured else None
        found.append(Group(key, path.replace("h0", CROSS) if crosses else path, hue, crosses))
    return Cloud(name, frame.width, tuple(found))


def nice_ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """Return round numbers, evenly spaced, from at most `low` to at least `high`.

    >>> nice_ticks(0, 37.5)
    [0.0, 10.0, 20.0, 30.0, 40.0]
    >>> nice_ticks(1, 3, whole=True)
    [1.0, 2.0, 3.0]
    >>> nice_ticks(0, 0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        high = low + 1
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(step, 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Twelve digits: 3 * 0.1 is to be 0.3, and whole numbers are to be whole.
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def shown(value: float, unit: Unit = "number") -> str:
    """Return a number as short as it may be.

    >>> shown(0.30149, "percent"), shown(4.08512), shown(15234.7), shown(163.0), shown(math.nan)
    ('30.1', '4.085', '15,235', '163', 'n/a')
    """
    if not math.isfinite(value):
        return "n/a"
    if unit == "percent":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plain(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def _between(value: float, values: tuple[float, float], start: float, end: float) -> float:
    low, high = values
    return round(start + (value - low) / (high - low) * (end - start), 2)
