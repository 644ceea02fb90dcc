"""Checks of proposals and schedules: what is drawn, and what it is compared with."""

from __future__ import annotations

import math

import torch

from scmreg.coordinates import trig_time
from scmreg.registry import registry
from scmreg.tangent import jvp
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

COUNT = 4000
"""Samples that a distribution is judged by."""
FAR = 2.6
"""Largest distance of the distribution functions in units of 1/sqrt(count), beyond which chance is three in a million
(Kolmogorov)."""
STEPS = 800
"""Steps of a training that is never run."""
LONGER = 1.02
"""Factor by which pairs may grow apart because a grid is not a refinement of the one before."""


@check("proposal")
def density_as_stated(trial: Trial) -> None:
    """The density is that of the quantiles: one over their derivative."""
    proposal, process = trial.component, trial.process()
    u = torch.tensor([trial.number("u", 0.02, 0.95)], dtype=torch.float64)
    t, slope = jvp(lambda u: proposal.transform(process, u), (u,), (torch.ones_like(u),))
    trial.expect(bool(torch.isfinite(t) & (t > 0)), f"the quantile of {float(u):.4g} is {float(t):g}: no time")
    trial.assume(bool(t < 0.999 * process.t_max))  # what lies past the end is put at the end
    trial.expect(
        bool(slope > 0),
        f"its quantiles do not grow at u = {float(u):.4g}: transform must be an inverse distribution function",
    )
    stated, known = float(proposal.log_density(process, t).exp()), float(1 / slope)
    trial.expect(
        abs(stated - known) <= 1e-7 * known,
        f"log_density states the density {stated:.6g} at t = {float(t):.6g} of process '{process.name}', but what"
        f" transform draws has {known:.6g} there: mend the one that is wrong (a density in the noise level is"
        " divided by log_ratio_rate to be one in time)",
    )


@check("proposal", examples=6)
def samples_follow_the_density(trial: Trial) -> None:
    """Samples are distributed as the quantiles say."""
    proposal, process = trial.component, trial.process()
    drawn = proposal.sample(process, COUNT, trial.rng, torch.float64).sort().values
    u = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    quantiles = proposal.transform(process, u)
    below = quantiles < process.t_max
    share = torch.searchsorted(drawn, quantiles, right=True) / COUNT
    away = ((share - u).abs() * below).max()
    worst = int(((share - u).abs() * below).argmax())
    trial.expect(
        float(away) <= FAR / math.sqrt(COUNT),
        f"of {COUNT} samples under process '{process.name}' a share of {float(share[worst]):.3g} lies below t ="
        f" {float(quantiles[worst]):.6g}, where the density that is stated has {float(u[worst]):.3g}: leave sample()"
        " alone, or draw what log_density says",
    )


@check("proposal", examples=10)
def times_in_range(trial: Trial) -> None:
    """Samples are times of the process after 0, one number each, in float32 at least."""
    proposal, process = trial.component, trial.process()
    for dtype, kept in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        t = proposal.sample(process, 500, trial.rng, dtype)
        trial.expect(
            t.shape == (500,) and t.dtype == kept,
            f"sample() gives shape {tuple(t.shape)} and {t.dtype} for 500 times of {dtype}: expected (500,) and {kept}",
        )
        end = float(torch.tensor(process.t_max, dtype=kept))
        trial.expect(
            bool(((t > 0) & (t <= end)).all()),
            f"sample() draws times from {float(t.min()):.6g} to {float(t.max()):.6g}; those of process '{process.name}'"
            f" are above 0 and up to {process.t_max:.6g}",
        )


@check("proposal", examples=5)
def drawn_from_the_generator(trial: Trial) -> None:
    """The same generator gives the same samples, and nothing else is drawn from."""
    proposal, process = trial.component, trial.process()
    before = torch.get_rng_state()
    first, second = (proposal.sample(process, 50, torch.Generator().manual_seed(7)) for _ in range(2))
    trial.expect(
        torch.equal(first, second), "two generators with the same seed give different samples: draw from rng alone"
    )
    trial.expect(
        torch.equal(torch.get_rng_state(), before),
        "it moves the global random state: draw from rng alone, so that a resumed run draws the same",
    )


@check("proposal", examples=10)
def proposal_converts(trial: Trial) -> None:
    """Converted to another process, it draws the same noise levels."""
    trial.prove("converted-proposals", "leave under() alone, or convert the times and the density by log_ratio_rate")


@check("schedule")
def pairs_in_order(trial: Trial) -> None:
    """The earlier time is below the time, 0 <= r < t, in the same shape and precision."""
    schedule, process = trial.component, trial.process()
    step = trial.whole("step", 0, STEPS - 1)
    for dtype in (torch.float32, torch.float64):
        proposed = (torch.rand(200, generator=trial.rng, dtype=torch.float64) * process.t_max).clamp_min(1e-6).to(dtype)
        t, r = schedule.pair(process, proposed, step, STEPS)
        for name, times in (("t", t), ("r", r)):
            trial.expect(
                times.shape == proposed.shape and times.dtype == dtype,
                f"{name} has shape {tuple(times.shape)} and {times.dtype} for proposed times of shape"
                f" {tuple(proposed.shape)} and {dtype}: keep both",
            )
        wrong = (~((r >= 0) & (r < t))).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            trial.fail(
                f"the pair of t = {float(t[first]):.8g} has r = {float(r[first]):.8g}, expected 0 <= r < t: keep them"
                " apart in the precision of t, by scmreg.schedule.strictly_below"
            )
        end = float(torch.tensor(process.t_max, dtype=dtype))
        trial.expect(
            bool((t <= end).all()),
            f"t reaches {float(t.max()):.8g}, past the end of process '{process.name}' at {process.t_max:.8g}",
        )


@check("schedule", examples=10)
def pairs_close_in(trial: Trial) -> None:
    """The pairs do not move apart as training goes on."""
    schedule, process = trial.component, trial.process()
    angles = torch.linspace(0.05, 0.9 * trial.reach, 400, dtype=torch.float64)
    proposed = trial.times(process, angles)

    def gap(step: int) -> float:
        t, r = schedule.pair(process, proposed, step, STEPS)
        return float((trig_time(process, t) - trig_time(process, r)).mean())

    early, late = sorted((trial.whole("step", 0, STEPS - 1), trial.whole("step", 0, STEPS - 1)))
    before, after = gap(early), gap(late)
    trial.expect(
        after <= before * LONGER,
        f"the pairs move apart: they are {before:.4g} of TrigFlow time from each other at step {early} of {STEPS}, and"
        f" {after:.4g} at step {late}; the earlier time must come closer as training goes on, or stay",
    )


@check("schedule", examples=5)
def steps_that_nobody_knows(trial: Trial) -> None:
    """Where the number of training steps is not known, it does without or says that it needs it."""
    schedule, process = trial.component, trial.process()
    proposed = torch.linspace(0.1, 0.9, 5, dtype=torch.float64) * process.t_max
    try:
        schedule.pair(process, proposed, 3, None)
    except ValueError:
        return  # as `needs_steps` does
    except Exception as error:
        trial.fail(
            f"where the number of steps is not known it raises {type(error).__name__}: {error}; get it by"
            " scmreg.schedule.needs_steps(self, steps), which says what is missing"
        )


@check("schedule", examples=10)
def schedule_of_noise_levels(trial: Trial) -> None:
    """It compares the same noise levels under every process."""
    ends = [registry("process").create(name).highest_level for name in registry("process")]
    trial.assume(getattr(trial.component, "sigma_max", 0.0) <= min(ends))  # more is cut off at the end of a process
    trial.prove("pairs-of-noise-levels", "define it in the noise level, and go to times by process.time_of")
