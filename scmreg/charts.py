"""Charts as inline SVG: curves over training, and maps of time bins over training.

Colours of text, axes and lines come from the style sheet of the page, so that a chart is readable in the dark and in
the light; only the colours of a map are fixed. A chart refers to nothing outside of itself.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Scale", "curve", "data_uri", "heat_map", "number"]

Array = NDArray[np.float64]

MOST = 240
"""Columns of a map, and points of a curve, at most: neighbours are averaged beyond."""
SPAN = 20.0
"""Ratio of the largest to the smallest value from which a scale is logarithmic."""
DEEPEST = 1e-5
"""Smallest value on a logarithmic scale, relative to the largest."""
RARE = 0.01
"""Share of the smallest and of the largest values that the colours of a map leave to the ends of their scale."""
ANGLES = ((0.0, "0"), (0.25, "π/8"), (0.5, "π/4"), (0.75, "3π/8"), (1.0, "π/2"))
"""Marks of TrigFlow time, as shares of pi/2."""


def number(value: float) -> str:
    """Return a number as people read it: four digits."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.4g}"
        return text if "e" not in text else f"{value:.0f}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of values to ``[0, 1]``."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Array, *, rare: float = 0.0, linear: bool = False) -> Scale:
        """Return the scale that shows all finite values: logarithmic where they are positive and far apart.

        Args:
            values: what is to be shown.
            rare: share of the smallest and of the largest values that may lie beyond the ends.
            linear: whether it is linear in any case.
        """
        known = values[np.isfinite(values)]
        if not known.size:
            return cls(0.0, 1.0)
        low, high = (float(end) for end in np.quantile(known, (rare, 1 - rare)))
        known = known[(known >= low) & (known <= high)]
        if low >= 0 and high > 0 and not linear:
            positive = float(known[known > 0].min())
            if high / positive > SPAN:
                return cls(max(positive, high * DEEPEST), high, log=True)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            half = abs(high) / 2 or 0.5
            return cls(low - half, high + half)
        return cls(low, high)

    def place(self, values: Array) -> Array:
        """Return where values lie, those beyond an end at the end; NaN stays NaN."""
        if self.log:
            shown = np.log(np.maximum(values, self.low) / self.low) / math.log(self.high / self.low)
        else:
            shown = (values - self.low) / (self.high - self.low)
        placed: Array = np.clip(shown, 0, 1)
        return placed

    def ticks(self, most: int = 4) -> list[float]:
        """Return a few round values within the scale."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last > first:
                stride = -(-(last - first + 1) // most)
                return [10.0**power for power in range(first, last + 1, stride)]
            return [
                value for k in (1, 2, 5) for p in (first - 1, first) if self.low <= (value := k * 10.0**p) <= self.high
            ]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / max(most - 1, 1)))
        step = next(step * k for k in (1, 2, 5, 10, 20) if (self.high - self.low) / (step * k) <= most)
        first_tick = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first_tick, math.floor(self.high / step + 1e-9) + 1)]


def curve(steps: Sequence[int], values: Sequence[float | None], *, name: str, last: int, linear: bool = False) -> str:
    """Draw one figure over training: every value faint, their running mean strong.

    Args:
        steps: training steps, rising.
        values: the figure at each step; gaps where it is ``None``.
        name: what it is, for those who cannot see it.
        last: step at which the axis ends.
        linear: whether the scale is linear even where values are far apart.
    """
    x, y = np.array(steps, dtype=float), np.array([math.nan if v is None else v for v in values], dtype=float)
    keep = np.isfinite(y)
    x, y = _thinned(x[keep], y[keep])
    width, height, left, right, top, bottom = 360.0, 170.0, 46.0, 8.0, 8.0, 22.0
    scale = Scale.of(y, linear=linear)
    across = Scale(0.0, float(max(last, 1)))
    px = left + across.place(x) * (width - left - right)
    py = height - bottom - scale.place(y) * (height - top - bottom)
    smooth = height - bottom - scale.place(_running_mean(y)) * (height - top - bottom)
    parts = [
        *_rules(scale, left, width - right, top, height - bottom),
        *_step_ticks(across, left, width - right, height - bottom),
    ]
    if len(x) == 1:
        parts.append(f'<circle class="mark" cx="{px[0]:.1f}" cy="{py[0]:.1f}" r="3"/>')
    else:
        parts.append(f'<path class="raw" d="{_path(px, py)}"/>')
        parts.append(f'<path class="line" d="{_path(px, smooth)}"/>')
    said = (
        f"{name} over training: from {number(float(y[0]))} to {number(float(y[-1]))}"
        if len(y)
        else f"{name}: no values"
    )
    if len(y):
        said += f", smallest {number(float(y.min()))}, largest {number(float(y.max()))}"
    return _svg(width, height, said, parts)


def heat_map(steps: Sequence[int], rows: Sequence[Sequence[float | None]], *, name: str) -> str:
    """Draw figures per bin of TrigFlow time over training as a map, and their profile over time beside it.

    The profile shows the mean over the first tenth (faint) and the last tenth (strong) of the columns; its axis is the
    scale of colours. Rare values beyond its ends are drawn at its ends.

    Args:
        steps: training step of every column, rising.
        rows: for every column the figure per bin of time, ``None`` where there is none.
        name: what the figure is, for those who cannot see it.
    """
    values = np.array([[math.nan if v is None else v for v in row] for row in rows], dtype=float).T
    columns = np.array(steps, dtype=float)
    columns, values = _merged(columns, values)
    scale = Scale.of(values, rare=RARE)
    width, height, left, top, bottom = 560.0, 236.0, 66.0, 8.0, 40.0
    plot, gap, profile = 330.0, 34.0, 118.0
    tall = height - top - bottom
    beside = left + plot + gap
    image = (
        f'<rect class="empty" x="{left}" y="{top}" width="{plot}" height="{tall}"/>'
        f'<image x="{left}" y="{top}" width="{plot}" height="{tall}" preserveAspectRatio="none"'
        f' href="{data_uri(_coloured(scale.place(values)[::-1]), "png")}"/>'
    )
    parts = [image]
    for share, label in ANGLES:
        y = height - bottom - share * tall
        parts.append(f'<path class="tick" d="M{left - 4:.1f} {y:.1f}h4"/>')
        parts.append(f'<text x="{left - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<path class="rule" d="M{beside:.1f} {y:.1f}h{profile}"/>')
    for words, y in (("noise", top + 0.12 * tall), ("t̂", top + tall / 2), ("data", height - bottom - 0.12 * tall)):
        parts.append(f'<text x="12" y="{y:.1f}" text-anchor="middle" transform="rotate(-90 12 {y:.1f})">{words}</text>')
    # A column ends at its step: the first begins where the training did.
    edges = np.concatenate([[0.0], columns])
    for step in _round_steps(edges[-1]):
        x = left + float(np.interp(step, edges, np.linspace(0, 1, len(edges)))) * plot
        parts.append(f'<path class="tick" d="M{x:.1f} {height - bottom:.1f}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 15:.1f}" text-anchor="middle">{_count(step)}</text>')
    parts.append(f'<text x="{left + plot / 2}" y="{height - 6}" text-anchor="middle">step</text>')
    parts += _profile(values, scale, beside, profile, top, height - bottom)
    return _svg(width, height, _described(name, columns, values), parts)


def data_uri(content: bytes, kind: str) -> str:
    """Return an image as part of a page.

    Args:
        content: the bytes of the file.
        kind: ``png`` or ``svg+xml``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _profile(values: Array, scale: Scale, left: float, wide: float, top: float, floor: float) -> list[str]:
    """Draw the first and the last columns over time, above the scale of colours."""
    parts = [f'<path class="frame" d="M{left:.1f} {top:.1f}V{floor:.1f}H{left + wide:.1f}"/>']
    share = -(-values.shape[1] // 10)
    bins = (np.arange(len(values)) + 0.5) / len(values)
    for style, chosen in (("raw", values[:, :share]), ("line", values[:, -share:])):
        mean = _mean(chosen)
        known = np.isfinite(mean)
        x, y = left + scale.place(mean[known]) * wide, floor - bins[known] * (floor - top)
        if len(x) > 1:
            parts.append(f'<path class="{style}" d="{_path(x, y)}"/>')
        elif len(x):
            parts.append(f'<circle class="mark" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="2.5"/>')
    strip = data_uri(_coloured(np.linspace(0, 1, 64)[None]), "png")
    parts.append(
        f'<image x="{left}" y="{floor + 4:.1f}" width="{wide}" height="7" preserveAspectRatio="none" href="{strip}"/>'
    )
    for tick in scale.ticks(3):
        at = left + float(scale.place(np.array([tick]))[0]) * wide
        parts.append(f'<path class="tick" d="M{at:.1f} {floor + 11:.1f}v3"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 25:.1f}" text-anchor="middle">{number(tick)}</text>')
    return parts


def _described(name: str, steps: Array, values: Array) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{name}: no values"
    bins = [index for index in range(len(values)) if np.isfinite(values[index]).any()]
    low, high = (f"{(index + 0.5) / len(values) * math.pi / 2:.2f}" for index in (bins[0], bins[-1]))
    first, last = (float(_mean(values[[index]])[0]) for index in (bins[0], bins[-1]))
    return (
        f"{name} by TrigFlow time and training step: {len(values)} bins of time from 0 to pi/2, steps"
        f" {int(steps[0])} to {int(steps[-1])}, values from {number(float(known.min()))} to"
        f" {number(float(known.max()))};"
        f" at t̂ = {low} {number(first)} on average, at t̂ = {high} {number(last)}"
    )


def _mean(columns: Array) -> Array:
    """Return the mean of every row over what is known, NaN where nothing is."""
    known = np.isfinite(columns)
    total, count = np.where(known, columns, 0).sum(axis=1), known.sum(axis=1)
    mean: Array = np.divide(total, count, out=np.full(len(columns), math.nan), where=count > 0)
    return mean


def _merged(steps: Array, values: Array) -> tuple[Array, Array]:
    """Average neighbouring columns until there are few enough; a merged column ends where its last one does."""
    if len(steps) <= MOST:
        return steps, values
    groups = np.array_split(np.arange(len(steps)), MOST)
    return steps[[group[-1] for group in groups]], np.stack([_mean(values[:, group]) for group in groups], axis=1)


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    steps, values = _merged(x, y[None])
    return steps, values[0]


def _running_mean(y: Array) -> Array:
    """Return the mean over a window of a fifteenth of the curve, shorter at its ends."""
    half = len(y) // 30
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    mean: Array = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return mean


def _coloured(shares: Array) -> bytes:
    """Return a map of shares in ``[0, 1]`` as PNG, one pixel each; what is NaN is transparent."""
    import matplotlib

    pixels = matplotlib.colormaps["viridis"](np.where(np.isnan(shares), 0, shares), bytes=True)
    pixels[..., 3] = np.where(np.isnan(shares), 0, 255)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG", optimize=True)
    return written.getvalue()


def _rules(scale: Scale, left: float, right: float, top: float, floor: float) -> list[str]:
    parts = []
    for tick in scale.ticks():
        y = floor - float(scale.place(np.array([tick]))[0]) * (floor - top)
        parts.append(f'<path class="rule" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    return parts


def _step_ticks(across: Scale, left: float, right: float, floor: float) -> list[str]:
    parts = [f'<path class="frame" d="M{left:.1f} {floor:.1f}H{right:.1f}"/>']
    for step in _round_steps(across.high):
        x = left + step / across.high * (right - left)
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<path class="tick" d="M{x:.1f} {floor:.1f}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16:.1f}" text-anchor="{anchor}">{_count(step)}</text>')
    return parts


def _round_steps(last: float) -> list[float]:
    return [step for step in Scale(0.0, max(last, 1.0)).ticks(5) if step == int(step)]


def _count(step: float) -> str:
    """Return a number of steps, short: 1500, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if step >= max(size, 1e4):
            return f"{step / size:g}{unit}"
    return f"{step:g}"


def _path(x: Array, y: Array) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _svg(width: float, height: float, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(said)}"><title>{escape(said)}</title>'
        + "".join(parts)
        + "</svg>"
    )
