"""What studies share: the small setting that they are conducted in, figures over the course of a training, drawing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scmreg import checkpoint
from scmreg.errors import OptionError
from scmreg.evaluate import Judge
from scmreg.progress import Progress
from scmreg.sample import load_run
from scmreg.sampler import Sampler
from scmreg.study import Results, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "NETWORK",
    "brief",
    "course",
    "label",
    "logarithmic",
    "often",
    "on_digits",
    "on_mixture",
    "plot_course",
    "plot_curves",
    "plot_dots",
    "rising",
    "scaled",
]

NETWORK: dict[str, Any] = {"name": "mlp", "width": 128, "depth": 3}
"""A network that takes milliseconds a step on one core."""
COLOURS = ("#2f7de1", "#e07b1f", "#22a06b", "#a259d9", "#dd4063", "#8a8f3c", "#3aa6b9", "#9a6b4f")
"""Colours of the conditions, in their order."""


def on_mixture(objective: Mapping[str, Any], steps: int, **trainer: Any) -> dict[str, Any]:
    """Return the tree of a run on a mixture of Gaussians in the plane, whose exact denoiser teaches."""
    return {
        "data": "mixture",
        "network": NETWORK,
        "objective": dict(objective),
        "teacher": {"source": "exact"},
        "trainer": brief(steps, **trainer),
        "evaluation": {"steps": [1, 2], "count": 4000, "metrics": ["sliced-wasserstein", "trajectory-error"]},
    }


def on_digits(
    objective: Mapping[str, Any], steps: int, teacher_steps: int, metrics: Sequence[str] = ("frechet",), **trainer: Any
) -> dict[str, Any]:
    """Return the tree of a run on the handwritten digits, whose teacher is trained for ``teacher_steps``."""
    return {
        "data": "digits",
        "network": NETWORK,
        "objective": dict(objective),
        "teacher": {"trainer": brief(teacher_steps)},
        "trainer": brief(steps, **trainer),
        "evaluation": {"steps": [1, 2], "metrics": list(metrics)},
    }


def brief(steps: int, **more: Any) -> dict[str, Any]:
    """Return the options of a trainer that writes as little as it can."""
    # One checkpoint, unless more are asked for: they would be most of what a study writes.
    return {"steps": steps, "checkpoint_every": steps, "previews": 0, "threads": 1, **more}


def often(steps: int, points: int) -> dict[str, Any]:
    """Return the options of a trainer that keeps ``points`` checkpoints, for `course`."""
    return {"checkpoint_every": max(1, steps // points), "keep": points + 1}


def course(folder: Path, evaluations: Sequence[int] = (1, 2)) -> dict[str, list[float]]:
    """Return the figures of every checkpoint of a few-step model as lists: ``step`` and, say, ``frechet@2, course``."""
    found: dict[str, list[float]] = {"step": []}
    run = load_run(folder)
    judge = Judge(run.recipe, run.recipe.data.load(), Progress())
    for path in sorted(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()):
        saved = replace(run, checkpoint=checkpoint.load(path))
        model = saved.denoiser()
        found["step"].append(saved.checkpoint.step)
        for steps in evaluations:
            figures = judge.judge("", model, run.recipe.sampler.with_steps(steps)).figures
            for name, value in figures.items():
                found.setdefault(f"{name}@{steps}, course", []).append(value)
    return found


def scaled(folder: Path, sampler: Sampler, counts: Sequence[int]) -> dict[str, float]:
    """Return the figures of a diffusion model by the number of steps of its sampler: ``sliced_wasserstein@4``."""
    run = load_run(folder)
    judge = Judge(run.recipe, run.recipe.data.load(), Progress())
    model = run.denoiser()
    found: dict[str, float] = {}
    for steps in counts:
        figures = judge.judge("", model, sampler.with_steps(steps)).figures
        found |= {f"{name}@{steps}": value for name, value in figures.items()}
    return found


def rising(study: Study, option: str) -> None:
    """Refuse a list of numbers that do not rise: what is said of their order would mean something else.

    Raises:
        OptionError: naming the option.
    """
    values = getattr(study, option)
    if any(later <= earlier for earlier, later in itertools.pairwise(values)):
        raise OptionError([f"{study.name}.{option} must rise from one to the next, unlike {list(values)}"])


def logarithmic(axes: Axes, across: float | None = None) -> None:
    """Make the values logarithmic, if there are any: where everything diverged there are none.

    Args:
        axes: what has been drawn on.
        across: base of a logarithmic scale from left to right, too.
    """
    drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]
    if not any((np.isfinite(values) & (values > 0)).any() for values in drawn):
        return
    axes.set_yscale("log")
    if across is not None:
        axes.set_xscale("log", base=across)


def plot_curves(axes: Axes, results: Results, along: str, figure: str) -> None:
    """Draw a figure that is a list along another: the mean of the seeds, and between the smallest and the largest a
    shade; what diverged is named.
    """
    for colour, condition in zip(_colours(), results.conditions, strict=False):
        curves = results.curves(condition, figure)
        if not len(curves):
            axes.plot([], [], color=colour, label=f"{condition} (diverged)")
            continue
        x = results.curves(condition, along)[0]
        axes.plot(x, curves.mean(0), color=colour, label=condition)
        axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
    logarithmic(axes)


def plot_course(axes: Axes, results: Results, figure: str) -> None:
    """Draw a figure over training."""
    plot_curves(axes, results, "step", figure)
    axes.set_xlabel("training steps")


def plot_dots(axes: Axes, results: Results, figures: Sequence[str]) -> None:
    """Draw figures of every condition: a dot for each seed, a line for the mean; what diverged has none."""
    places = np.arange(len(results.conditions))
    for number, (colour, figure) in enumerate(zip(_colours(), figures, strict=False)):
        for place, condition in zip(places, results.conditions, strict=True):
            values = [value for value in results.of(condition, figure) if np.isfinite(value)]
            at = place + 0.16 * (number - (len(figures) - 1) / 2)
            axes.plot([at] * len(values), values, "o", color=colour, markersize=4, alpha=0.7)
            if values:
                axes.plot([at - 0.07, at + 0.07], [np.mean(values)] * 2, color=colour, linewidth=2)
            else:
                axes.annotate("diverged", (at, 0.5), xycoords=("data", "axes fraction"), rotation=90, ha="center")
        axes.plot([], [], "o", color=colour, label=figure)
    axes.set_xticks(places, results.conditions, rotation=20 if len(places) > 4 else 0)


def label(axes: Axes, y: str, title: str = "") -> None:
    """Finish axes: name of the values, title, legend, a light grid."""
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS
