"""Geometry of the charts on a report page: data to places in an SVG, which the template draws.

Places are in units of the SVG's view box. Shapes: C classes.
"""
import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

__all__ = ['Axis', 'Band', 'Bar', 'Chart', 'Curve', 'Mark', 'heat_map', 'linear_axis', 'log_axis', 'smoothed']

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 14, 46

# a heat map has the colour of `--accent`; strength is opacity, so that it fits light and dark pages
_HEAT = (38, 110, 196)


@dataclass
class Axis:
    """A scale from data to places.

    Attributes:
        label: What it measures.
        low: Value at the start.
        high: Value at the end.
        ticks: Values and their texts.
        is_log: Whether it is logarithmic.
    """
    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between the ends, from 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)


def linear_axis(label: str, low: float, high: float, num_ticks: int = 5) -> Axis:
    """Return a linear axis with round ticks.

    Args:
        label: What it measures.
        low: Smallest value shown.
        high: Largest value shown.
        num_ticks: Ticks to aim at.
    """
    if not high > low:
        high = low + 1
    step = _round_step((high - low) / num_ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [(number * step, _plain(number * step)) for number in range(first, last + 1)]
    return Axis(label, low, high, ticks)


def log_axis(label: str, low: float, high: float) -> Axis:
    """Return a logarithmic axis from 1 upwards with ticks at 1, 2, 5, 10 or, over many decades, at powers of 10.

    Args:
        label: What it measures.
        low: Smallest value shown; below 1 counts as 1.
        high: Largest value shown.
    """
    low = max(low, 1) / 1.15
    high = max(high * 1.15, low * 2)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        ticks += [step * 10 ** power for step in steps if low <= step * 10 ** power <= high]
    return Axis(label, low, high, [(tick, f'{tick:,.15g}') for tick in ticks], is_log=True)


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _plain(value: float) -> str:
    return f'{round(value, 10):,.10g}'


@dataclass
class Mark:
    """A point: place, text of its tooltip, and whether it lies on a class that the filter may hide."""
    x: float
    y: float
    tip: str


@dataclass
class Bar:
    """A bar: place, size, look and text of its tooltip."""
    x: float
    y: float
    width: float
    height: float
    look: str
    tip: str


@dataclass
class Band:
    """A part of the horizontal axis with a name, such as a group of classes."""
    x: float
    width: float
    label: str


@dataclass
class Curve:
    """Lines and points of one entry, or one figure.

    Attributes:
        name: Text of the legend.
        key: What the legend switches on and off: the same key on all charts of an entry.
        colour: Number of its colour.
        paths: SVG path data.
        marks: Points.
    """
    name: str
    key: str
    colour: int
    paths: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass
class Chart:
    """A chart with two axes.

    Attributes:
        title: Text above it.
        x: Horizontal axis.
        y: Vertical axis.
        curves: Lines and points.
        bars: Bars, behind the curves.
        bands: Parts of the horizontal axis.
        paths: Thin lines for comparison, such as a diagonal.
    """
    title: str
    x: Axis
    y: Axis
    curves: list[Curve] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def across(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return round(self.left + self.x.share(value) * (self.right - self.left), 1)

    def up(self, value: float) -> float:
        """Return the vertical place of a value."""
        return round(self.bottom - self.y.share(value) * (self.bottom - self.top), 1)

    def line(self, values: Sequence[tuple[float, float]]) -> str:
        """Return the path through points; one that is not finite leaves a gap."""
        words, starts = [], True
        for x, y in values:
            if not math.isfinite(y):
                starts = True
                continue
            words.append(f'{"M" if starts else "L"}{self.across(x):g} {self.up(y):g}')
            starts = False
        return ''.join(words)

    def mark(self, x: float, y: float, tip: str) -> Mark:
        """Return a point with its tooltip."""
        return Mark(self.across(x), self.up(y), tip)

    def bar(self, start: float, end: float, top: float, look: str, tip: str) -> Bar:
        """Return a bar from the horizontal axis up, between two values of it."""
        left, right, y = self.across(start), self.across(end), self.up(top)
        return Bar(left, y, round(max(right - left, 0.3), 1), round(max(self.bottom - y, 0), 1), look, tip)

    def band(self, start: float, end: float, label: str) -> Band:
        """Return a part of the horizontal axis, cut to its ends."""
        left = self.across(min(max(start, self.x.low), self.x.high))
        right = self.across(min(max(end, self.x.low), self.x.high))
        return Band(left, round(right - left, 1), label)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over neighbours, about an eighth of the values wide; NaN counts for nothing.

    Args:
        values: Numbers in the order of an axis [C].
    """
    width = max(len(values) // 8, 1) | 1  # odd: as many neighbours on both sides
    kernel = np.ones(width)
    seen = np.isfinite(values)
    total = np.convolve(np.where(seen, values, 0), kernel, 'same')
    weight = np.convolve(seen.astype(float), kernel, 'same')
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0.5)


def heat_map(percent: np.ndarray) -> str:
    """Return a matrix as a PNG in a `data:` URI, a pixel a cell, stronger by the square root of the value.

    Args:
        percent: Values from 0 to 100 [B, B].
    """
    pixels = np.zeros((*percent.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT
    pixels[..., 3] = np.round(255 * np.sqrt(np.clip(percent, 0, 100) / 100))

    buffer = io.BytesIO()
    Image.fromarray(pixels, 'RGBA').save(buffer, 'PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()
