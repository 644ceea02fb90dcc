"""Studies: figures of arms, verdicts that can fall either way, work that is kept."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from scmreg import conduct as conducting
from scmreg import registry
from scmreg.conduct import conduct
from scmreg.errors import OptionError, OutputError, RunError
from scmreg.progress import Progress
from scmreg.study import Results, Study, figures_of_run

STUDIES = registry.registry("study")
PLUGIN = '''
"""A study of next to nothing."""
import scmreg
from scmreg.study import Verdict

class Rates(scmreg.Study, name="rates"):
    """Whether three steps train."""

    columns = ("sliced_wasserstein@1",)
    seeds: int = 2
    """Seeds."""
    high: float = 1e30
    """A rate that is too high."""

    def arms(self):
        return self.under_seeds({
            f"rate {rate:g}": {
                "data": {"name": "swissroll", "count": 200},
                "network": {"name": "mlp", "width": 8, "depth": 1},
                "objective": {"name": "ct"},
                "trainer": {"steps": 3, "batch_size": 8, "learning_rate": rate, "schedule": "constant", "previews": 0},
                "evaluation": {"steps": [1], "count": 50, "metrics": ["sliced-wasserstein"]},
            }
            for rate in (1e-3, self.high)
        })

    def judge(self, results):
        low, high = results.conditions
        return [Verdict("a low rate is better", results.below("sliced_wasserstein@1", low, high), "as said")]

    def draw(self, figure, results):
        figure.subplots().plot(results.of(results.conditions[0], "sliced_wasserstein@1"))

@scmreg.hookimpl
def scmreg_components():
    return [Rates]
'''


class Told(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def rates(registries: None, tmp_path: Path) -> type[Study]:
    """The class of a small third-party study, loaded from a file."""
    (tmp_path / "rates.py").write_text(PLUGIN)
    registry.load_file(tmp_path / "rates.py")
    found: type[Study] = registry.registry("study")["rates"]
    return found


def results(figures: Mapping[str, Mapping[str, list[Any]]]) -> Results:
    """Return results from, by condition and figure, the values of every seed."""
    return Results(
        {
            (condition, seed): {name: values[seed] for name, values in found.items()}
            for condition, found in figures.items()
            for seed in range(len(next(iter(found.values()))))
        }
    )


def test_what_diverged_is_infinitely_bad() -> None:
    made = Results({("a", 0): {"x": 1.0}, ("a", 1): {"x": 3.0}, ("b", 0): {"x": 2.0}, ("b", 1): None})
    assert made.conditions == ("a", "b")
    assert made.of("b", "x") == [2.0, math.inf]
    assert made.mean("a", "x") == 2.0
    assert made.mean("b", "x") == math.inf
    assert made.below("x", "a", "b")
    assert not made.below("x", "b", "a")
    assert not made.below("x", "a", "b", factor=0.4)
    assert made.told("a", "x") == "2 (1 to 3)"
    assert made.told("b", "x") == "1 of 2 diverged"
    assert made.curves("b", "x").tolist() == [2.0]


def test_a_figure_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(KeyError, match="y"):
        Results({("a", 0): {"x": 1.0}}).of("a", "y")


def test_a_study_is_conducted_judged_drawn_and_kept(rates: type[Study], tmp_path: Path) -> None:
    place, progress = tmp_path / "out", Told()
    findings = conduct(rates(), place, progress, workers=1)
    assert findings.verdicts[0].held
    assert [findings.results.diverged(name) for name in ("rate 0.001", "rate 1e+30")] == [0, 2]
    assert findings.picture.is_file()
    saved = json.loads((place / "findings.json").read_text())
    assert saved["figures"]["rate 1e+30"] == [None, None]
    assert saved["verdicts"] == [{"claim": "a low rate is better", "held": True, "because": "as said"}]
    assert len(progress.lines) == 4
    run = place / "runs" / "rate-0.001-s1"
    assert findings.results.of("rate 0.001", "sliced_wasserstein@1")[1] == figures_of_run(run)["sliced_wasserstein@1"]
    assert {"sliced_wasserstein@1", "sliced_wasserstein@floor"} <= figures_of_run(run).keys()

    # What is done stays done: only the arm that is missing is run again, with the same figures.
    (run / conducting.MEASURED).unlink()
    again = Told()
    assert conduct(rates(), place, again, workers=1).results.figures == findings.results.figures
    assert [line.partition(":")[0] for line in again.lines] == ["rate-0.001-s1"]


def test_several_workers_give_the_figures_of_one(rates: type[Study], tmp_path: Path) -> None:
    found = [conduct(rates(), tmp_path / str(n), Progress(), workers=n).results.figures for n in (1, 2)]
    assert found[0] == found[1]


def test_a_folder_of_something_else_is_refused(
    rates: type[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    (place / "other").mkdir(parents=True)
    with pytest.raises(OutputError, match="holds no study"):
        conduct(rates(), place, Progress(), workers=1)
    monkeypatch.setattr(conducting, "_finished", lambda *_: iter(()))
    with pytest.raises(RunError, match="cannot be read"):
        conduct(rates(), tmp_path / "begun", Progress())
    with pytest.raises(OutputError, match="of other options"):
        conduct(rates(high=2.0), tmp_path / "begun", Progress())
    monkeypatch.setattr(conducting, "code_digest", lambda *_: "another")
    with pytest.raises(OutputError, match="another version of the code"):
        conduct(rates(), tmp_path / "begun", Progress())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        conduct(rates(), tmp_path / "file" / "below", Progress())


def test_two_arms_of_one_name_and_no_workers_are_refused(
    rates: type[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = rates(seeds=1).arms()
    with monkeypatch.context() as patch:
        patch.setattr(rates, "arms", lambda _: [*arms, arms[-1]])
        with pytest.raises(OptionError, match="more than one arm called rate-1e-30-s0"):
            conduct(rates(), tmp_path / "out", Progress())
    with pytest.raises(OptionError, match="1 or more"):
        conduct(rates(), tmp_path / "out", Progress(), workers=0)


@pytest.mark.parametrize("name", STUDIES)
def test_arms_compose(name: str) -> None:
    arms = STUDIES.create(name, seeds=2).arms()
    assert len({arm.name for arm in arms}) == len(arms)
    assert len({arm.condition for arm in arms}) * 2 == len(arms)
    for arm in arms:
        arm.recipe.check()
        assert arm.name.replace("-", "").replace(".", "").isalnum()


# Verdicts -----------------------------------------------------------------------------------------------------------

UP, DOWN = [0.1, 0.11], [0.9, 0.91]
ERROR, DISTANCE = "trajectory_error@1", "sliced_wasserstein@1"


def falling(names: list[str], figure: str, last: float | None = None) -> dict[str, dict[str, list[float]]]:
    """Return figures that halve from condition to condition, the last one as said."""
    values = [2.0**-i for i in range(len(names))]
    if last is not None:
        values[-1] = last
    return {name: {figure: [value, value * 1.01]} for name, value in zip(names, values, strict=True)}


def treatments(values: list[list[float]]) -> dict[str, dict[str, list[float]]]:
    """Return the distances of none, clip, l2 and rms at each rate."""
    rows = zip(("0.001", "0.004", "0.016"), values, strict=True)
    return {
        f"{name}, rate {rate}": {"frechet@1": [value] * 2, "frechet@2": [value] * 2}
        for rate, row in rows
        for name, value in zip(("none", "clip", "l2", "rms"), row, strict=True)
    }


def both(share: float) -> dict[str, list[float]]:
    """Return precision and recall of two steps, as a share of the teacher's."""
    found = {"precision@teacher": [0.8, 0.8], "recall@teacher": [0.8, 0.8]}
    return {**found, "precision@2": [0.8, 0.8], "recall@2": [0.8 * share, 0.8 * share]}


CURSE = [f"N = {n}" for n in (8, 32, 128, 512, 8192)]
GRID = [f"N = {n}" for n in (8, 32, 128, 1024, 16384, 1048576)]
P = [f"p = {p}" for p in ("0", "0.25", "0.5", "0.75", "1")]
ECT = [f"ECT {n}" for n in (250, 500, 1000, 2000, 4000)]
FORMS = ["t, positional", "t, Fourier 0.02", "t, Fourier 16", "log, positional", "log, Fourier 16 (EDM)"]
FULL: dict[str, list[tuple[dict[str, Any], list[bool]]]] = {
    "tangent-stability": [
        (
            {
                name: {"time_growth": [growth, growth], "time_largest": [large, large]}
                for name, growth, large in zip(FORMS, (2, 2, 5, 50, 50), (1, 1, 20, 9, 9), strict=True)
            },
            [True, True, True, True],
        ),
        ({name: {"time_growth": [5, 5], "time_largest": [1, 1]} for name in FORMS}, [False, False, False, False]),
    ],
    "tangent-normalization": [
        (treatments([[1.0, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9], [9.0, 9.0, 1.0, 1.0]]), [True, True, True]),
        (treatments([[1.0, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9], [9.0, 8.0, 8.0, 8.0]]), [False, True, True]),
        (treatments([[1.0, 1.1, 1.2, 0.9], [1.0, 0.9, 1.1, 0.9], [0.8, 8.0, 0.9, 4.0]]), [False, False, False]),
    ],
    "adaptive-weighting": [
        (
            {
                "uniform": {"frechet@1": [1, 1], "frechet@2": [1, 1]},
                "adaptive": {"frechet@1": [0.9, 0.8], "frechet@2": [0.9, 1.1]},
            },
            [True, False],
        )
    ],
    "discretisation": [
        (
            {**falling(GRID, ERROR, last=1.0), "continuous": {ERROR: [0.01, 0.01]}},
            [True, True, True],
        ),
        ({**falling(GRID, ERROR), "continuous": {ERROR: [0.5, 0.5]}}, [True, False, False]),
        (
            {**dict(reversed(falling(GRID[::-1], ERROR).items())), "continuous": {ERROR: [0.5, 0.5]}},
            [False, True, False],
        ),
    ],
    "vsd-diversity": [
        (
            {
                "scd": {"precision@1": UP, "recall@1": DOWN, **both(0.95)},
                "scd+vsd": {"precision@1": [0.5, 0.5], "recall@1": [0.5, 0.5]},
                "vsd": {"precision@1": DOWN, "recall@1": UP},
            },
            [True, True, True, True],
        ),
        (
            {
                "scd": {"precision@1": DOWN, "recall@1": UP, **both(0.8)},
                "scd+vsd": {"precision@1": [0.99, 0.99], "recall@1": [0.5, 0.5]},
                "vsd": {"precision@1": UP, "recall@1": DOWN},
            },
            [False, False, False, False],
        ),
    ],
    "segments": [
        (
            {f"M = {m}": {"trajectory_error": [1 / m, 1 / m], "sliced_wasserstein": [m, m]} for m in (1, 2, 4, 8)},
            [True, True, False, False],
        )
    ],
    "curse-of-consistency": [
        (
            {
                name: {"early": [value, value], ERROR: [1 / value, 1 / value]}
                for name, value in zip(CURSE, (1, 2, 4, 8, 16), strict=True)
            },
            [True, True],
        ),
        (
            {
                name: {"early": [value, 30 - value], ERROR: [value, value]}
                for name, value in zip(CURSE, (1, 2, 4, 8, 16), strict=True)
            },
            [False, False],
        ),
    ],
    "tuning-efficiency": [
        (
            {
                "iCT from scratch": {"frechet@2": [3, 3]},
                "pretraining, iCT": {"frechet@2": [2, 2]},
                "pretraining, ECT": {"frechet@2": [1, 1]},
                **falling(ECT, "frechet@2"),
            },
            [True, True, True],
        ),
        (
            {
                "iCT from scratch": {"frechet@2": [1, 1]},
                "pretraining, iCT": {"frechet@2": [2, 0.5]},
                "pretraining, ECT": {"frechet@2": [1.5, 1]},
                **falling(ECT, "frechet@2", last=1.0),
            },
            [False, False, False],
        ),
    ],
    "swissroll-adaptive-weighting": [
        (
            {name: {f"sliced_wasserstein@{n}": [1 - i / 8, 1 - i / 9] for n in (2, 4, 64)} for i, name in enumerate(P)},
            [True, True],
        ),
        (
            {name: {f"sliced_wasserstein@{n}": [1 + i / 8, 1 - i / 9] for n in (2, 4, 64)} for i, name in enumerate(P)},
            [False, False],
        ),
    ],
}


@pytest.mark.parametrize(("name", "figures", "held"), [(name, *case) for name, cases in FULL.items() for case in cases])
def test_verdicts_follow_the_figures(name: str, figures: dict[str, Any], held: list[bool]) -> None:
    study: Study = STUDIES.create(name, seeds=2)
    verdicts = study.judge(results(figures))
    assert [verdict.held for verdict in verdicts] == held
    assert list(figures) == list(dict.fromkeys(arm.condition for arm in study.arms()))
    for verdict in verdicts:
        assert any(character.isdigit() for character in verdict.because)


def test_every_study_has_cases() -> None:
    assert set(FULL) == {name for name in STUDIES if STUDIES[name].__module__.startswith("scmreg_studies")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_every_study_can_be_conducted(name: str, tmp_path: Path) -> None:
    """In its smallest form: figures are there, drawn and judged. (Their commands are those of claims.md.)"""
    few = {
        "steps": 8,
        "teacher_steps": 8,
        "pretraining": 8,
        "tuning": 8,
        "points": 2,
        "lengths": [2, 3, 4],
        "samples": 4,
    }
    options = {key: value for key, value in few.items() if key in set(STUDIES[name].__annotations__)}
    findings = conduct(STUDIES.create(name, seeds=1, **options), tmp_path / "out", Progress(), workers=1)
    for condition in findings.results.conditions:
        assert not findings.results.diverged(condition)
        for column in findings.study.columns:
            assert np.isfinite(findings.results.of(condition, column)).all()
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["verdicts"]
    assert findings.picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", FULL)
def test_what_diverged_can_be_drawn_and_judged(name: str) -> None:
    """A condition that diverged under every seed is drawn as such, and no claim that needs it holds by accident."""
    study: Study = STUDIES.create(name, seeds=2)
    conditions = list(dict.fromkeys(arm.condition for arm in study.arms()))
    lost = Results({(condition, seed): None for condition in conditions for seed in range(2)})
    assert not any(verdict.held for verdict in study.judge(lost))
    figure = Figure()
    study.draw(figure, lost)
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("discretisation", "intervals", (1024, 8)),
        ("curse-of-consistency", "intervals", (8, 8)),
        ("segments", "segments", (4, 1)),
        ("tuning-efficiency", "lengths", (500, 250, 1000)),
        ("swissroll-adaptive-weighting", "evaluations", (4, 2)),
        ("swissroll-adaptive-weighting", "evaluations", (8, 64)),
    ],
)
def test_lists_that_would_turn_a_claim_around_are_refused(name: str, option: str, values: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=option):
        STUDIES.create(name, **{option: values})
