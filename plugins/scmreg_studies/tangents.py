"""Studies of the tangent: which formulation keeps it small, and what its size does to training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scmreg.coordinates import process_time
from scmreg.rng import generator
from scmreg.sample import load_run
from scmreg.study import Arm, Results, Study, Verdict
from scmreg.tangent import motion, tangent_parts
from scmreg.types import Conditions, Count, norms
from scmreg_studies.setting import COLOURS, NETWORK, course, label, often, on_digits, plot_course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TangentNormalization", "TangentStability"]

ENDS = (0.3, 1.2, 1.5)
"""TrigFlow times: the middle of the range lies between the first two, its end beyond the last."""


class TangentStability(Study, name="tangent-stability"):
    """How large the two parts of df/dt are at every time, for what a network may be told of the time.

    Diffusion models of the digits that differ in nothing but the time's transformation and embedding; of each the norms
    of ``∇f · dx/dt`` and ``∂f/∂t`` along its own probability flow, times ``cos t`` as they enter the loss.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 4 and Sec. 4.1"
    columns = ("time_end", "time_growth", "space_largest")

    steps: Count = 2000
    """Training steps of each model."""
    samples: Count = 256
    """Samples at each time."""
    times: Count = 48
    """Equally spaced times, up to noise level 80."""

    def arms(self) -> Sequence[Arm]:
        """Return five models: TrigFlow's time and the logarithm of the noise level, embedded with several scales."""
        fourier = {"embedding": "fourier", "fourier_scale": 16.0}
        slow = {"embedding": "fourier", "fourier_scale": 0.02}
        told = {"t, positional": ("identity", {}), "t, Fourier 0.02": ("identity", slow)}
        told |= {"t, Fourier 16": ("identity", fourier), "log, positional": ("log-sigma", {})}
        told |= {"log, Fourier 16 (EDM)": ("log-sigma", fourier)}
        return self.under_seeds(
            {
                condition: {
                    "data": "digits",
                    "network": {**NETWORK, **embedding},
                    "parameterization": {"name": "unit-variance", "c_noise": c_noise},
                    "objective": "diffusion",
                    "trainer": {"steps": self.steps, "checkpoint_every": self.steps, "previews": 0, "threads": 1},
                    "evaluation": {"count": 500, "metrics": ["frechet"]},
                }
                for condition, (c_noise, embedding) in told.items()
            }
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return both norms at every time, and how they grow towards pure noise."""
        run = load_run(folder)
        denoiser, process = run.denoiser(), run.recipe.process
        x0 = run.recipe.data.load().train
        rng = generator(0, "tangent-stability")
        chosen = torch.randint(len(x0), (self.samples,), generator=rng).tolist()
        data = run.spec.scale(x0.__getitems__(chosen), process.sigma_data)
        cond = Conditions() if x0.labels is None else Conditions(label=x0.labels[chosen])
        t_hat = torch.linspace(0.0, math.atan(80 / process.sigma_data), self.times + 1)[1:]
        found: dict[str, list[float]] = {"t": t_hat.tolist(), "space": [], "time": []}
        for at in process_time(process, t_hat):
            t = at.expand(self.samples)
            noise = torch.randn(data.shape, generator=rng)
            x = process.perturb(data, noise, t)
            with torch.no_grad():
                pair = denoiser.predict(x, t, cond)
            parts = tangent_parts(denoiser, denoiser, motion(denoiser, x, t, *pair), cond)
            for name, part in zip(("space", "time"), parts, strict=True):
                found[name].append(float(norms(part).mean()))
        in_time = torch.tensor(found["time"])
        middle = (t_hat > ENDS[0]) & (t_hat < ENDS[1])
        end = float(in_time[t_hat > ENDS[2]].max())
        return {
            **found,
            "time_end": end,
            "time_middle": float(in_time[middle].median()),
            "time_growth": end / float(in_time[middle].median()),
            "time_largest": float(in_time.max()),
            "space_largest": max(found["space"]),
        }

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare the norms at the end with those in the middle, and those of different scales."""
        growth = {name: results.of(name, "time_growth") for name in results.conditions}
        logs = [name for name in results.conditions if name.startswith("log")]
        flat, large = "t, positional", "t, Fourier 16"
        return (
            Verdict(
                "told the logarithm of the noise level, ∂f/∂t explodes towards pure noise (tenfold and more)",
                results.whole and all(min(growth[name]) > 10 for name in logs),
                f"its norm beyond t = {ENDS[2]} over the median between {ENDS[0]} and {ENDS[1]}: "
                + results.listed("time_growth", logs),
            ),
            Verdict(
                "told t by a positional embedding, it stays flat (within a factor of three)",
                max(growth[flat]) < 3,
                results.listed("time_growth", [flat]),
            ),
            Verdict(
                "it grows with the scale of the Fourier embedding (scale 16 over 0.02: tenfold and more)",
                results.below("time_largest", "t, Fourier 0.02", large, factor=0.1),
                "its largest norm: " + results.listed("time_largest", ["t, Fourier 0.02", large]),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw both norms over time."""
        for axes, name, title in zip(
            figure.subplots(1, 2, sharex=True),
            ("space", "time"),
            (r"$\Vert\cos t\,\nabla_x f\cdot dx/dt\Vert$", r"$\Vert\cos t\,\partial_t f\Vert$"),
            strict=True,
        ):
            for colour, condition in zip(COLOURS, results.conditions, strict=False):
                curves = results.curves(condition, name)
                if not len(curves):
                    axes.plot([], [], color=colour, label=f"{condition} (diverged)")
                    continue
                times = results.curves(condition, "t")[0]
                axes.plot(times, curves.mean(0), color=colour, label=condition)
                axes.fill_between(times, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.set_yscale("log")
            axes.set_xlabel("TrigFlow time t")
            label(axes, "norm", title)


class TangentNormalization(Study, name="tangent-normalization"):
    """Whether consistency models train with raw, clipped and normalized tangents.

    sCD on the digits from one teacher a seed; the runs differ in the treatment of the tangent alone.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 5a and Sec. 4.2"
    columns = ("frechet@1", "frechet@2", "frechet@teacher")

    steps: Count = 2000
    """Training steps of each student."""
    teacher_steps: Count = 2000
    """Training steps of each teacher."""
    points: Count = 5
    """Times that a student is judged in the course of its training."""
    learning_rate: float = 1e-3
    """Learning rate of every student."""

    def arms(self) -> Sequence[Arm]:
        """Return a student for each treatment."""
        return self.under_seeds(
            {
                normalization: on_digits(
                    {"name": "scd", "normalization": normalization},
                    self.steps,
                    self.teacher_steps,
                    learning_rate=self.learning_rate,
                    **often(self.steps, self.points),
                )
                for normalization in ("none", "clip", "l2", "rms")
            }
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the distances at the end, and over training."""
        return {**super().measure(folder), **course(folder)}

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare the raw tangent with every other."""
        treated = [name for name in results.conditions if name != "none"]
        return (
            Verdict(
                "normalized or clipped tangents train, raw ones do not (two-step distance at least twice as large,"
                " or divergence)",
                all(results.below("frechet@2", name, "none", factor=0.5) for name in treated),
                "Fréchet distance of two steps: " + results.listed("frechet@2"),
            ),
            Verdict(
                "normalized or clipped tangents give better samples than raw ones, in one step and in two",
                all(results.below(f"frechet@{n}", name, "none") for name in treated for n in (1, 2)),
                "of one step: " + results.listed("frechet@1"),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the distances over training."""
        for axes, steps in zip(figure.subplots(1, 2, sharey=True), (1, 2), strict=True):
            plot_course(axes, results, f"frechet@{steps}, course")
            label(axes, "Fréchet distance", f"{steps} step{'s' * (steps > 1)}")
