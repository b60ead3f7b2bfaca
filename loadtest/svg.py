"""Plots as inline SVG: lines over time, distributions of times, bars. Colours are the page's own CSS variables."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loadtest.histogram import Histogram

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 14, 30
COLOURS = 6
"""`--line-0` to `--line-5` of the page's style sheet."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: points in order of x; NaN is a gap."""

    title: str
    points: Sequence[tuple[float, float]]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to at least `high`."""
    if not high > low:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step) * step
    ticks = [first]
    while ticks[-1] < high - step * 1e-9:
        ticks.append(ticks[-1] + step)
    return ticks


def over_time(title: str, lines: Sequence[Line], show: Callable[[float], str], shade_until: float = 0) -> str:
    """Lines over seconds.

    Args:
        show: a value as its axis says it.
        shade_until: seconds up to which nothing is measured yet.
    """
    values = [y for line in lines for _, y in line.points if not math.isnan(y)]
    times = [x for line in lines for x, _ in line.points]
    if not values:
        return ""
    ys, end = nice_ticks(0, max(values)), max(times)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / max(end, 1e-9),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / ys[-1],
        )

    parts = []
    if shade_until > 0:
        right, _ = place(min(shade_until, end), 0)
        parts.append(
            f'<rect class="shade" x="{LEFT}" y="{TOP}" width="{right - LEFT:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
        )
    parts += [_horizontal(place(0, y)[1], show(y)) for y in ys]
    parts += [_tick(place(x, 0)[0], f"{x:g} s") for x in nice_ticks(0, end, 5) if x <= end]
    for index, line in enumerate(lines):
        for piece in _pieces(line.points):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in piece))
            parts.append(f'<polyline class="line c{index % COLOURS}" points="{path}"/>')
    return _figure(title, [line.title for line in lines], parts)


def distribution(title: str, histograms: Sequence[tuple[str, Histogram]]) -> str:
    """Which share of times is above which: a curve per histogram, both axes logarithmic, so tails are seen."""
    shown = [(name, histogram) for name, histogram in histograms if histogram.count]
    if not shown:
        return ""
    lows = [histogram.quantile(0.001) for _, histogram in shown]
    left = math.floor(math.log10(max(1e-6, min(lows))))
    right = math.ceil(math.log10(max(1e-5, *(histogram.max for _, histogram in shown))))
    right = max(right, left + 1)

    def place(seconds: float, above: float) -> tuple[float, float]:
        x = (math.log10(max(seconds, 10.0**left)) - left) / (right - left)
        y = min(1.0, -math.log10(max(above, 1e-4)) / 4)
        return LEFT + (WIDTH - LEFT - RIGHT) * x, TOP + (HEIGHT - TOP - BOTTOM) * (1 - y)

    parts = [_horizontal(place(1, above)[1], label) for above, label in _SHARES]
    parts += [_tick(place(10.0**power, 1)[0], _power_of_ten(power)) for power in range(left, right + 1)]
    for index, (_, histogram) in enumerate(shown):
        seen, points = 0, [place(lows[index], 1.0)]
        for low, high, count in histogram.items():
            seen += count
            above = 1 - seen / histogram.count
            points.append(place(min((low + high) / 2, histogram.max), max(above, 1 / histogram.count / 2)))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line c{index % COLOURS}" points="{path}"/>')
    return _figure(title, [name for name, _ in shown], parts)


_SHARES = ((1.0, "all"), (0.1, "p90"), (0.01, "p99"), (0.001, "p99.9"), (0.0001, "p99.99"))


def bars(title: str, rows: Sequence[tuple[str, float, float, float]], show: Callable[[float], str]) -> str:
    """A bar for each row of name, value, least and most; the range is a thin line."""
    known = [row for row in rows if not math.isnan(row[1])]
    if not known:
        return ""
    top = max(row[3] for row in known) or 1.0
    room = 14 + 8 * max(len(show(row[1])) for row in known)  # for the longest value behind the longest bar
    height = TOP + 34 * len(rows) + 6
    parts = []
    for index, (name, value, least, most) in enumerate(rows):
        y = TOP + 34 * index
        if math.isnan(value):
            continue
        scale = (WIDTH - 120 - room) / top
        parts.append(f'<text class="label" x="112" y="{y + 16}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(
            f'<rect class="bar c{index % COLOURS}" x="120" y="{y + 3}" width="{value * scale:.1f}" height="18"/>'
        )
        if most > least:
            parts.append(
                f'<line class="range" x1="{120 + least * scale:.1f}" x2="{120 + most * scale:.1f}" '
                f'y1="{y + 12}" y2="{y + 12}"/>'
            )
        parts.append(f'<text class="value" x="{126 + most * scale:.1f}" y="{y + 16}">{html.escape(show(value))}</text>')
    return _figure(title, [], parts, height)


def _pieces(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for x, y in points:
        if math.isnan(y):
            if piece:
                yield piece
            piece = []
        else:
            piece.append((x, y))
    if piece:
        yield piece


def _horizontal(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="label" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}</text>'
    )


def _tick(x: float, label: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(label)}</text>'


def _power_of_ten(power: int) -> str:
    if power <= -4:
        return f"{10 ** (power + 6)} µs"
    return f"{10 ** (power + 3)} ms" if power < 0 else f"{10**power} s"


def _figure(title: str, names: Sequence[str], parts: Sequence[str], height: int = HEIGHT) -> str:
    legend = "".join(
        f'<span><i class="c{index % COLOURS}"></i>{html.escape(name)}</span>' for index, name in enumerate(names)
    )
    title = html.escape(title)
    return (
        f'<figure><figcaption>{title}<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg></figure>'
    )
