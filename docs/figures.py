"""The figures of the documentation, drawn from the registry by the code that they explain."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor

from scmreg import registry
from scmreg.coordinates import process_time, to_trig, trig_time
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.process import Process

__all__ = ["pictures", "processes", "shown"]

THEMES = {"light": "#33383f", "dark": "#d5dae1"}
"""Colour of text and axes by colour scheme of the site."""
COLOURS = ("#2f7de1", "#e07b1f", "#22a06b", "#a259d9", "#dd4063", "#8a8f3c", "#3aa6b9", "#9a6b4f")
"""Colours of the processes, in their order."""
LEVELS = (0.002, 80.0)
"""Noise levels between which processes are compared: those of EDM's sampler."""

START = 0.5
"""The noise that the trajectory starts from."""


def pictures() -> dict[str, bytes]:
    """Return the figures, each for both colour schemes: path in the site's sources and SVG."""
    drawn = {"coordinates": draw_coordinates, "trajectory": draw_trajectory}
    return {f"explanation/{name}-{theme}.svg": draw(theme) for name, draw in drawn.items() for theme in THEMES}


def shown(name: str, alternative: str) -> str:
    """Return the Markdown of a figure of which each colour scheme shows its own."""
    return "\n".join(f"![{alternative}]({name}-{theme}.svg#only-{theme})" for theme in THEMES)


@functools.cache
def processes() -> dict[str, Process]:
    """Return every process with its default options."""
    return {name: cls() for name, cls in registry.registry("process").items()}


def draw_coordinates(theme: str) -> bytes:
    """Draw the coefficients and TrigFlow's time of every process, over its own time and over the noise level."""
    figure, (own, time, level) = panels(theme, 3)
    ratios = torch.from_numpy(np.geomspace(*LEVELS, 200))
    for index, (name, process) in enumerate(processes().items()):
        t = torch.linspace(0, 1, 400, dtype=torch.float64) * process.t_max
        at, share = process.coefficients(t), t / process.t_max
        own.plot(share, at.alpha, color=COLOURS[index % len(COLOURS)], label=name)
        own.plot(share, at.sigma, color=COLOURS[index % len(COLOURS)], linestyle=(0, (4, 2)))
        time.plot(share, trig_time(process, t), color=COLOURS[index % len(COLOURS)])
        inside = ratios[ratios <= process.highest_level]
        level.plot(inside, trig_time(process, process.time_of(inside)), **taking_turns(index))
    own.set(title="alpha (solid), sigma (dashed)", xlabel="own time t/t_max", ylim=(-0.03, 1.4))
    time.set(title="TrigFlow time t̂", xlabel="own time t/t_max")
    level.set(title="TrigFlow time t̂", xlabel="noise level sigma/alpha", xscale="log")
    for axes in (time, level):
        axes.set_yticks([0, math.pi / 4, math.pi / 2], ["0", "π/4", "π/2"])
    return finished(figure, theme)


def draw_trajectory(theme: str) -> bytes:
    """Draw one trajectory in the coordinates of every process and, converted, in those of TrigFlow."""
    figure, (own, trig) = panels(theme, 2)
    for index, (name, process) in enumerate(processes().items()):
        t, x = trajectory(process)
        x_hat, t_hat = to_trig(process, x, t)
        own.plot(t / process.t_max, x, color=COLOURS[index % len(COLOURS)], label=name)
        trig.plot(t_hat, x_hat, **taking_turns(index))
    own.set(title="x in own coordinates", xlabel="own time t/t_max", ylim=(0, 0.8))
    trig.set(title="x̂ in TrigFlow coordinates", xlabel="TrigFlow time t̂", ylim=(0, 0.8))
    trig.set_xticks([0, math.pi / 4, math.pi / 2], ["0", "π/4", "π/2"])
    return finished(figure, theme)


def trajectory(process: Process, count: int = 200) -> tuple[Tensor, Tensor]:
    """Solve the probability flow of a mixture in a process's own time and coordinates, from noise to data.

    Returns:
        Falling times and the points there, float64, each of shape ``(N,)``: ``count`` of the times are equally spaced
        in the process's own time, ``count`` in TrigFlow's.
    """
    law = GaussianMixture(torch.ones(3), torch.tensor([[-1.2], [0.1], [1.3]]), torch.full((3, 1), 0.15))
    exact = ExactDenoiser(law, process)
    low, high = (math.atan(ratio / process.sigma_data) for ratio in LEVELS)
    angles = torch.linspace(high, low, count, dtype=torch.float64)
    t = process_time(process, angles)
    t = torch.cat([t, torch.linspace(float(t[0]), float(t[-1]), count, dtype=torch.float64)]).unique().flip(0)
    start = process.prior(torch.tensor([[START]], dtype=torch.float64), t[:1])

    def slope(time: float, x: np.ndarray) -> np.ndarray:
        moved = exact.velocity(torch.from_numpy(x)[None], torch.tensor([time], dtype=torch.float64))
        return moved[0].numpy()

    found = solve_ivp(slope, (float(t[0]), float(t[-1])), start[0].numpy(), "DOP853", t.numpy(), rtol=1e-8, atol=1e-10)
    return t, torch.from_numpy(found.y[0])


def taking_turns(index: int) -> dict[str, Any]:
    """Return the style of a curve that lies on others: each process has its turn along it."""
    count, dash = len(processes()), 5.0
    gap = dash * (count - 1)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": (-dash * index, (dash, gap)),
        "linewidth": 2.2,
        "dash_capstyle": "butt",
    }


def panels(theme: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels beside each other, transparent, its text in the colour of the theme."""
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    made = list(figure.subplots(1, count))
    for axes in made:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=THEMES[theme], labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(THEMES[theme])
    return figure, made


def finished(figure: Figure, theme: str) -> bytes:
    """Return a figure as SVG, with one legend below it."""
    for axes in figure.axes:
        axes.title.set(color=THEMES[theme], fontsize=9.5)
        axes.xaxis.label.set(color=THEMES[theme], fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        labelcolor=THEMES[theme],
        fontsize=9,
    )
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scmreg"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()
