"""Charts as numbers: the positions of lines, ticks and points. The template draws them and escapes their texts.

Lengths are SVG units. A line chart is about as many pixels wide on the screen, so that letters keep their size.
"""

import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30
MAP_WIDTH, MAP_HEIGHT, MAP_EDGE, MAP_THUMBNAIL = 760, 560, 20, 27
POINTS_PER_LINE = 240  # more would not show: a line has about as many pixels
COLOURS = 10  # --c0 ... --c9 in report.css, distinguishable with any kind of colour vision
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # disc
    "M-3.6-3.6h7.2v7.2h-7.2z",  # square
    "M0-4.8L4.6 3.4H-4.6z",  # triangle
    "M0-5.2L4.4 0L0 5.2L-4.4 0z",  # diamond
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # cross
)
# The heat map's two hues. The size of a value sets the opacity, so that 0 has the page's colour, light or dark.
POSITIVE, NEGATIVE = (214, 96, 24), (36, 112, 196)


def line_chart(
    name: str,
    title: str,
    sentence: str,
    series: dict[str, list[tuple[float, float]]],
    *,
    percent: bool = False,
    wide: bool = False,
) -> dict | None:
    """A chart of values over steps: `series` maps a name to (step, value) pairs. None where all series are empty.

    `wide` allows a logarithmic scale. It is used when all values are positive and span more than a factor of 30.
    """
    series = {label: thin(points) for label, points in series.items() if points}
    if not series:
        return None
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    logarithmic = wide and min(values) > 0 and max(values) > 30 * min(values)
    ticks, low, high = log_ticks(min(values), max(values)) if logarithmic else linear_ticks(min(values), max(values))
    scale = math.log10 if logarithmic else float
    first, last = min(steps), max(steps)
    last = last if last - first > 1e-9 * abs(last) else first + max(1, 0.1 * abs(first))  # one step
    first = 0 if 0 < first < last / 10 else first

    def x_of(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for label, points in series.items():
        places = [(x_of(step), y_of(value)) for step, value in points]
        lines.append({"label": label, "colour": len(lines) % COLOURS, **drawn_line(points, places, percent)})
    return {
        "name": name,
        "title": title,
        "sentence": sentence,
        "lines": lines,
        "logarithmic": logarithmic,
        "description": "; ".join(describe_line(label, points, percent) for label, points in series.items()),
        "y_ticks": [(y_of(tick), f"{100 * tick:g} %" if percent else number(tick)) for tick in ticks],
        "x_ticks": [(x_of(tick), number(tick)) for tick in linear_ticks(first, last, 4)[0] if first <= tick <= last],
    }


def drawn_line(points: list[tuple[float, float]], places: list[tuple[float, float]], percent: bool) -> dict:
    """A line's path, dots (all of up to 24, else the last), values to show under the pointer, and last value."""
    texts = [number(value, percent) for _, value in points]
    return {
        "path": "M" + "L".join(f"{x:g} {y:g}" for x, y in places),
        "dots": places if len(places) <= 24 else places[-1:],
        "hover": [[x, y, step, text] for (x, y), (step, _), text in zip(places, points, texts, strict=True)],
        "last": texts[-1],
    }


def describe_line(label: str, points: list[tuple[float, float]], percent: bool) -> str:
    """A line in words, for readers who cannot see it."""
    (begin, first), (end, last) = points[0], points[-1]
    values = [value for _, value in points]
    return (
        f"{label}: {number(first, percent)} at step {number(begin)}, {number(last, percent)} at step "
        f"{number(end)}, lowest {number(min(values), percent)}, highest {number(max(values), percent)}"
    )


def thin(points: Sequence[tuple[float, float]], most: int = POINTS_PER_LINE) -> list[tuple[float, float]]:
    """About `most` of the points: the lowest and the highest of every interval, so that no spike is lost."""
    points = list(points)
    if len(points) <= most:
        return points
    length = math.ceil(len(points) / (most // 2))
    indices = {0, len(points) - 1}
    for begin in range(0, len(points), length):
        interval = range(begin, min(begin + length, len(points)))
        indices |= {min(interval, key=lambda i: points[i][1]), max(interval, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(indices)]


def linear_ticks(low: float, high: float, about: int = 4) -> tuple[list[float], float, float]:
    """Round numbers from below `low` to above `high`, with the lower and the upper end of the axis."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: an axis around it
        low, high = low - max(abs(low) * 0.1, 1e-6), high + max(abs(high) * 0.1, 1e-6)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    begin, end = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return (
        [round(i * unit, 12) if unit > 1e-6 else i * unit for i in range(begin, end + 1)],
        begin * unit,
        end * unit,
    )


def log_ticks(low: float, high: float) -> tuple[list[float], float, float]:
    """Powers of ten (with 2 and 5 times them where they are few), with both ends of a logarithmic axis."""
    factors = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    while len(inside) > 5:
        inside = inside[::2]
    return inside, low * 0.93, high * 1.07


def number(value: float, percent: bool = False) -> str:
    """A number as a person writes it: 12,345, 0.0123, 3.1e-5, 71.3 %."""
    if percent:
        return f"{100 * value:.1f} %"
    if value and abs(value) < 1e-4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def heat_map(matrix: np.ndarray) -> np.ndarray:
    """(d, d) values as (d, d, 4) uint8. The hue is the sign; the opacity is the square root of the size."""
    strength = np.sqrt(np.clip(np.abs(matrix), 0, 1))
    colour = np.where(matrix[..., None] >= 0, np.array(POSITIVE), np.array(NEGATIVE))
    # 52 levels: the eye distinguishes no more, and the file is smaller.
    opacity = (np.round(strength * 51) * 5).astype(np.uint8)
    return np.concatenate([colour, opacity[..., None]], axis=-1).astype(np.uint8)


def mark(label: int) -> dict:
    """Colour and shape of a class. 50 classes differ, then the marks repeat; an unknown label (< 0) is grey."""
    if label < 0:
        return {"colour": "none", "shape": SHAPES[0]}
    return {"colour": label % COLOURS, "shape": SHAPES[label // COLOURS % len(SHAPES)]}


def scatter(xy: np.ndarray) -> tuple[list[tuple[float, float]], list[bool]]:
    """Places of (m, 2) points on the map, and which have room for a picture: earlier points take it first."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    share = (xy - low) / np.where(high > low, high - low, 1)
    share[:, high <= low] = 0.5
    x = MAP_EDGE + share[:, 0] * (MAP_WIDTH - 2 * MAP_EDGE)
    y = MAP_HEIGHT - MAP_EDGE - share[:, 1] * (MAP_HEIGHT - 2 * MAP_EDGE)
    places = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)]
    taken: list[tuple[float, float]] = []
    with_room = []
    for a, b in places:
        free = all(max(abs(a - c), abs(b - d)) >= MAP_THUMBNAIL + 3 for c, d in taken)
        with_room.append(free)
        if free:
            taken.append((a, b))
    return places, with_room
