"""Studies of the tangent: which formulation keeps it small, and what its size does to training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import MinLen

from scmreg.coordinates import process_time
from scmreg.rng import generator
from scmreg.sample import load_run
from scmreg.study import Arm, Results, Study, Verdict
from scmreg.tangent import motion, tangent_parts
from scmreg.types import Conditions, Count, Positive, norms
from scmreg_studies.setting import COLOURS, NETWORK, brief, label, logarithmic, on_digits, plot_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TangentNormalization", "TangentStability"]

RAW, TREATED = "none", ("clip", "l2", "rms")
"""Treatments of the tangent."""
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
                    "trainer": brief(self.steps),
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
            t = at.repeat(self.samples)
            noise = torch.randn(data.shape, generator=rng)
            x = process.perturb(data, noise, t)
            with torch.no_grad():
                pair = denoiser.predict(x, t, cond)
            parts = tangent_parts(denoiser, denoiser, motion(denoiser, x, t, *pair), cond)
            for name, part in zip(("space", "time"), parts, strict=True):
                # They are told times cos t, as they enter the loss.
                found[name].append(float(norms(part).mean() / torch.cos(at)))
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
        flat, slow, fast, log, edm = results.conditions

        def explodes(condition: str, words: str) -> Verdict:
            return Verdict(
                f"{words}, ∂f/∂t explodes towards pure noise: tenfold and more",
                results.whole and min(growth[condition]) > 10,
                f"its norm beyond t = {ENDS[2]} over the median between {ENDS[0]} and {ENDS[1]}: "
                + results.listed("time_growth", [condition]),
            )

        return (
            explodes(edm, "told the logarithm of the noise level by Fourier features of scale 16 (EDM)"),
            explodes(log, "told it by a positional embedding"),
            Verdict(
                "told t by a positional embedding, ∂f/∂t stays flat: within a factor of three",
                max(growth[flat]) < 3,
                results.listed("time_growth", [flat]),
            ),
            Verdict(
                "told t by Fourier features, ∂f/∂t is larger for scale 16 than for 0.02, under every seed",
                results.below("time_largest", slow, fast),
                "its largest norm: " + results.listed("time_largest", [slow, fast]),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw both norms over time."""
        for axes, name, title in zip(
            figure.subplots(1, 2, sharex=True),
            ("space", "time"),
            (r"$\Vert\nabla_x f\cdot dx/dt\Vert$", r"$\Vert\partial_t f\Vert$"),
            strict=True,
        ):
            plot_curves(axes, results, "t", name)
            axes.set_xlabel("TrigFlow time t")
            label(axes, "norm", title)


class TangentNormalization(Study, name="tangent-normalization"):
    """Whether consistency models train with raw, clipped and normalized tangents.

    sCD on the digits from one teacher a seed. The optimizer, Adam, makes up for the size of a gradient as a whole, so
    every treatment is tried at several learning rates: one that keeps training stable bears the higher ones.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 5a and Sec. 4.2"
    columns = ("frechet@1", "frechet@2", "frechet@teacher")

    seeds: Count = 2
    """Seeds that every condition is trained under, from 0."""
    steps: Count = 1200
    """Training steps of each student."""
    teacher_steps: Count = 2000
    """Training steps of each teacher."""
    rates: Annotated[tuple[Positive, ...], MinLen(1)] = (1e-3, 4e-3, 1.6e-2)
    """Learning rates."""

    def arms(self) -> Sequence[Arm]:
        """Return a student for each treatment and rate."""
        return self.under_seeds(
            {
                f"{treatment}, rate {rate:g}": on_digits(
                    {"name": "scd", "normalization": treatment}, self.steps, self.teacher_steps, learning_rate=rate
                )
                for rate in self.rates
                for treatment in (RAW, *TREATED)
            }
        )

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare the raw tangent with every treated one, rate by rate."""
        figure = "frechet@2"
        best = min(results.mean(condition, figure) for condition in results.conditions)
        lost, told = [], []
        for rate in self.rates:
            raw, *treated = (f"{treatment}, rate {rate:g}" for treatment in (RAW, *TREATED))
            told.append(results.listed(figure, (raw, *treated)))
            good = [name for name in treated if results.mean(name, figure) < 2 * best]
            lost += [rate] * any(results.below(figure, name, raw, factor=0.5) for name in good)
        return (
            Verdict(
                "there is a rate at which a normalized or clipped tangent trains and the raw one does not (distance of"
                " two steps at least twice as large under every seed, or divergence)",
                bool(lost),
                f"at {', '.join(f'{rate:g}' for rate in lost) or 'none'} of the rates; " + "; ".join(told),
            ),
            *(self.at_best(results, steps) for steps in (1, 2)),
        )

    def at_best(self, results: Results, steps: int) -> Verdict:
        """Compare the paper's normalization with none, each at the rate that suits it best."""
        figure = f"frechet@{steps}"
        chosen = {
            treatment: min(
                (f"{treatment}, rate {rate:g}" for rate in self.rates), key=lambda name: results.mean(name, figure)
            )
            for treatment in (RAW, *TREATED)
        }
        return Verdict(
            f"each at its best rate, l2 (the paper's) gives better samples of {steps} step{'s' * (steps > 1)} than the"
            " raw tangent, under every seed",
            results.below(figure, chosen["l2"], chosen[RAW]),
            results.listed(figure, chosen.values()),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the distances over the learning rate."""
        for axes, steps in zip(figure.subplots(1, 2, sharey=True), (1, 2), strict=True):
            for colour, treatment in zip(COLOURS, (RAW, *TREATED), strict=False):
                for seed in range(self.seeds):
                    names = (f"{treatment}, rate {rate:g}" for rate in self.rates)
                    values = [results.of(name, f"frechet@{steps}")[seed] for name in names]
                    axes.plot(self.rates, values, "o-", color=colour, label=treatment if not seed else None)
            logarithmic(axes, across=10)
            axes.set_xlabel("learning rate")
            label(axes, "Fréchet distance", f"{steps} step{'s' * (steps > 1)}")
