"""Pictures of samples: grids of images, scatter plots of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scmreg.data import DataSpec
from scmreg.errors import OutputError
from scmreg.metric import Judged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "comparison", "grid", "has_picture", "save_preview", "save_samples"]

Panel = tuple[str, Judged]


def comparison(
    panels: Sequence[Panel], spec: DataSpec, path: Path, *, real: Tensor | None = None, rows: int = 8
) -> Path | None:
    """Draw several sets of samples side by side, one column per class where there are classes.

    Args:
        panels: titles and samples; sample ``i`` of each is of the same noise and label.
        spec: what the samples are.
        path: PNG file to write; of a single set it has no title.
        real: data that set the limits of points, so that pictures of several runs on them can be laid beside each
            other; the points of all panels if not given.
        rows: images in a column.

    Returns:
        The path, or ``None`` where samples have no picture (points in other than two dimensions).
    """
    if not has_picture(spec):
        return None
    if spec.modality == "image":
        _write(_beside([(title, _columns(judged, spec, rows)) for title, judged in panels]), path)
    else:
        _scatter(panels, path, real)
    return path


def save_samples(samples: Tensor, spec: DataSpec, path: Path, columns: int | None = None) -> None:
    """Draw one set of samples: a grid of images in reading order, or a scatter plot."""
    check_picture(spec)
    if spec.modality == "image":
        width = columns or (len(spec.classes) if 1 < len(spec.classes) <= 20 else max(1, round(len(samples) ** 0.5)))
        _write(grid(samples, min(width, len(samples))), path)
    else:
        _scatter([("samples", Judged(samples))], path)


def save_preview(samples: Tensor, labels: Tensor | None, spec: DataSpec, path: Path) -> None:
    """Draw a small set of samples without a title: a low grid of images, or points in a window that depends on the
    data alone, so that pictures of several steps can be laid beside each other.
    """
    if spec.modality == "image":
        _write(grid(samples, min(len(spec.classes) if 1 < len(spec.classes) <= 20 else 10, len(samples))), path)
        return
    from matplotlib.figure import Figure  # imported late: it takes a while

    figure = Figure(figsize=(2.4, 2.4), dpi=110)
    axis = figure.add_axes((0, 0, 1, 1))
    x: NDArray[np.float32] = samples.numpy()
    colour = None if labels is None else labels.numpy()
    axis.scatter(x[:, 0], x[:, 1], s=2, c=colour, cmap="tab10" if colour is not None else None, linewidths=0)
    centre = spec.mean if len(spec.mean) == 2 else spec.mean * 2
    reach = 2.6 * spec.std
    axis.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")
    axis.set_axis_off()
    _save(figure, path)


def has_picture(spec: DataSpec) -> bool:
    """Whether samples can be drawn: images with one or three channels, points in the plane."""
    return spec.shape == (2,) if spec.modality == "points" else spec.shape[0] in (1, 3)


def check_picture(spec: DataSpec) -> None:
    """Refuse samples that have no picture.

    Raises:
        OutputError: naming their shape.
    """
    if not has_picture(spec):
        raise OutputError(f"samples of shape {spec.shape} have no picture", "write arrays instead: --out FILE.npz")


def grid(images: Tensor, columns: int, smallest: int = 32) -> Image.Image:
    """Lay images of shape ``(N, C, H, W)`` in ``[0, 1]`` out in rows; small ones are magnified by whole factors."""
    count, channels, height, width = images.shape
    factor = max(1, -(-smallest // max(height, width)))
    gap = 1 if factor == 1 else 2
    rows = -(-count // columns)
    cell_h, cell_w = height * factor + gap, width * factor + gap
    canvas = np.full((rows * cell_h + gap, columns * cell_w + gap, 3), 255, dtype=np.uint8)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if channels == 1:
        pixels = pixels.repeat(3, axis=3)
    for index, image in enumerate(pixels.repeat(factor, axis=1).repeat(factor, axis=2)):
        top, left = (index // columns) * cell_h + gap, (index % columns) * cell_w + gap
        canvas[top : top + height * factor, left : left + width * factor] = image
    return Image.fromarray(canvas)


def _columns(judged: Judged, spec: DataSpec, rows: int) -> Image.Image:
    """Return a grid with one column per class, or a square one."""
    classes = len(spec.classes)
    if judged.labels is None or not 1 < classes <= 20:
        side = min(rows, max(1, int(len(judged) ** 0.5)))
        return grid(judged.x[: side * side], side)
    chosen = [(judged.labels == label).nonzero()[:rows, 0] for label in range(classes)]
    deep = min(len(indices) for indices in chosen)
    if deep == 0:
        return grid(judged.x[:rows], 1)
    order = torch.stack([indices[:deep] for indices in chosen], dim=1).flatten()
    return grid(judged.x[order], classes)


def _beside(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    margin, head = (12, 22) if len(panels) > 1 else (0, 0)  # one panel is what its file is called
    font = ImageFont.load_default(14)
    # A panel of few classes may be narrower than its title.
    widths = [max(image.width, math.ceil(font.getlength(title)) if head else 0) for title, image in panels]
    height = max(image.height for _, image in panels) + head + margin
    canvas = Image.new("RGB", (sum(widths) + margin * (len(panels) + 1), height), "white")
    pen, left = ImageDraw.Draw(canvas), margin
    for (title, image), width in zip(panels, widths, strict=True):
        if head:
            pen.text((left, 4), title, fill="black", font=font)
        canvas.paste(image, (left, head))
        left += width + margin
    return canvas


def _scatter(panels: Sequence[Panel], path: Path, real: Tensor | None = None) -> None:
    from matplotlib.figure import Figure  # imported late: it takes a while

    # This layout is the one that leaves room for titles over panels of equal axes.
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout="compressed", dpi=110)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    across, along = _window(torch.cat([judged.x for _, judged in panels]) if real is None else real)
    for axis, (title, judged) in zip(axes, panels, strict=True):
        x: NDArray[np.float32] = judged.x[:4000].numpy()
        colour = None if judged.labels is None else judged.labels[:4000].numpy()
        axis.scatter(x[:, 0], x[:, 1], s=2, c=colour, cmap="tab10" if colour is not None else None, linewidths=0)
        axis.set(title=title, xlim=across, ylim=along, aspect="equal")
    _save(figure, path)


def _window(x: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the limits of a square around all points but rare ones."""
    ends = np.quantile(x.numpy(), (0.0025, 0.9975), axis=0)
    centre, reach = ends.mean(0), 0.6 * max(float((ends[1] - ends[0]).max()), 1e-6)
    across, along = ((float(middle) - reach, float(middle) + reach) for middle in centre)
    return across, along


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


def _write(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
