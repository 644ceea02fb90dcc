"""The picture of a comparison: figures over the number of evaluations, and samples of every run below."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from scmreg.compare import Comparison, Group
from scmreg.errors import OutputError, RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_free", "draw_comparison"]

COLOURS = ("#2f7de1", "#e07b1f", "#22a06b", "#a259d9", "#dd4063", "#8a8f3c", "#3aa6b9", "#9a6b4f")
"""Colours of the runs, in their order; those of the figures in the documentation."""
WIDTH = 12.0
"""Inches."""
DPI = 110
COLUMNS = 4
"""Panels in a row."""
MARGIN = 14


def check_free(path: Path) -> None:
    """Refuse a place where no new PNG file can be written.

    Raises:
        OutputError: if it is taken, has another suffix, or has no folder.
    """
    if path.suffix != ".png":
        raise OutputError(f"{path} is no PNG file", "name one that ends in .png")
    if path.exists():
        raise OutputError(f"{path} exists already", "delete it, or choose another --png")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}", "make it first, or choose another --png")


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw a comparison: for every group of comparable runs a row of panels, then the samples of every run.

    Args:
        comparison: what is compared.
        path: PNG file to write.

    Raises:
        OutputError: if the file exists already, or cannot be written.
        RunError: if a picture of a run cannot be read.
    """
    check_free(path)
    parts = [_chart(comparison, group) for group in comparison.groups if group.rows]
    for name, record in comparison.records.items():
        picture = record.folder / "samples" / "comparison.png"
        if picture.is_file():
            parts.append(_titled(name, _fitted(picture)))
    if not parts:
        raise RunError("there is nothing to draw: the runs have neither figures nor pictures of samples")
    width = max(part.width for part in parts) + 2 * MARGIN
    canvas = Image.new("RGB", (width, sum(part.height + MARGIN for part in parts) + MARGIN), "white")
    top = MARGIN
    for part in parts:
        canvas.paste(part, (MARGIN, top))
        top += part.height + MARGIN
    try:
        canvas.save(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


def _chart(comparison: Comparison, group: Group) -> Image.Image:
    from matplotlib.figure import Figure  # imported late: it takes a while

    names = list(comparison.records)
    figures = list(dict.fromkeys(row.figure for row in group.rows))
    columns = min(COLUMNS, len(figures))
    deep = -(-len(figures) // columns)
    figure = Figure(figsize=(WIDTH, 2.7 * deep + 0.8), layout="constrained", dpi=DPI)
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(deep, columns, squeeze=False).flatten()
    for panel, name in zip(panels, figures, strict=False):
        _panel(panel, group, name, names)
    for panel in panels[len(figures) :]:
        panel.set_axis_off()
    if len(comparison.groups) > 1:
        figure.suptitle(f"{', '.join(group.runs)} — on {group.data}; not comparable with the other runs", fontsize=10)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return Image.open(written).convert("RGB")


def _panel(panel: Axes, group: Group, figure: str, names: list[str]) -> None:
    """Draw one figure: bars where models have one number of evaluations each, lines over the numbers elsewhere."""
    found = [row for row in group.rows if row.figure == figure]
    counts = sorted({row.evaluations for row in found if row.model == "model" and row.evaluations is not None})
    lines = len(counts) > 1
    for index, run in enumerate(group.runs):
        colour = COLOURS[names.index(run) % len(COLOURS)]
        own = {row.evaluations: row.values[run] for row in found if row.model == "model" and run in row.values}
        places = [count for count in counts if count in own]
        if lines and len(places) > 1:
            panel.plot([counts.index(c) for c in places], [own[c] for c in places], "o-", color=colour, label=run)
        elif lines and places:
            panel.plot([counts.index(c) for c in places], [own[c] for c in places], "D", color=colour, label=run)
        elif places:
            panel.bar([index], [own[places[0]]], color=colour, label=run, width=0.7)
    taught: dict[float, list[str]] = {}
    for row in found:
        for run, value in row.values.items() if row.model == "teacher" else ():
            taught.setdefault(value, []).append(run)
    for value, runs in taught.items():
        colour = "#3c4550" if len(taught) == 1 else COLOURS[names.index(runs[0]) % len(COLOURS)]
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        label = "teacher" if len(taught) == 1 else f"teacher of {runs[0]}{more}"
        panel.axhline(value, color=colour, linestyle=(0, (4, 2)), linewidth=1, label=label)
    floors = {value for row in found if row.model == "real data" for value in row.values.values()}
    for floor in sorted(floors):
        panel.axhline(floor, color="#8a929c", linestyle=":", linewidth=1.2, label="real data, two halves")
    if lines:
        panel.set_xticks(range(len(counts)), [str(count) for count in counts])
        panel.set_xlabel("evaluations", fontsize=8.5)
    else:
        panel.set_xticks([])
    panel.set_title(figure, fontsize=10)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.12, y=0.12)
    low, high = panel.get_ylim()
    if high - low <= 1e-6 * max(abs(low), abs(high), 1.0):  # equal but for rounding
        panel.set_ylim(low - 0.05, high + 0.05)
    panel.ticklabel_format(axis="y", useOffset=False)


def _fitted(path: Path) -> Image.Image:
    """Return a picture, made as narrow as the charts."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    most = round(WIDTH * DPI)
    if picture.width <= most:
        return picture
    return picture.resize((most, round(picture.height * most / picture.width)), Image.Resampling.LANCZOS)


def _titled(title: str, picture: Image.Image) -> Image.Image:
    head = 24
    canvas = Image.new("RGB", (picture.width, picture.height + head), "white")
    ImageDraw.Draw(canvas).text((MARGIN, 2), title, fill="black", font=ImageFont.load_default(17))
    canvas.paste(picture, (0, head))
    return canvas
