"""Conducting a study: its arms as runs, several at a time, then the verdict and the figure.

Everything that is done stays done: conducting a study again in the same place goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scmreg import checkpoint, options, registry
from scmreg.environment import environment
from scmreg.errors import DivergenceError, OptionError, OutputError, RunError
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.run import code_digest, execute, prepare
from scmreg.study import Arm, Results, Study, Verdict
from scmreg.train import Interrupted

__all__ = ["Findings", "conduct"]

MEASURED = "measured.json"
"""File in the directory of an arm that says what was measured of it."""


@dataclass(frozen=True)
class Findings:
    """What came of a study."""

    study: Study
    folder: Path
    verdicts: tuple[Verdict, ...]
    results: Results
    seconds: float
    """Processor time that all arms took together."""

    @property
    def picture(self) -> Path:
        """The figure."""
        return self.folder / "figure.png"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what diverged is ``null``."""
        seeds = self.results.seeds
        return {
            "study": options.to_tree(self.study),
            "reference": self.study.reference,
            "verdicts": [{"claim": v.claim, "held": v.held, "because": v.because} for v in self.verdicts],
            "seeds": list(seeds),
            "figures": {
                condition: [self.results.figures[condition, seed] for seed in seeds]
                for condition in self.results.conditions
            },
            "seconds": round(self.seconds, 1),
            "picture": str(self.picture),
            "environment": environment(torch.device("cpu")),
        }


def conduct(study: Study, folder: Path, progress: Progress, workers: int | None = None) -> Findings:
    """Run all arms of a study, judge its claims and draw its figure.

    Args:
        study: what is studied.
        folder: where everything is kept; if the study was begun there, it goes on.
        progress: told of every arm.
        workers: arms that are run at a time, each by one thread; one for each core if not given.

    Returns:
        The findings, which are also in ``findings.json``.

    Raises:
        OutputError: if the folder holds another study, one of other options or of other code, or cannot be written.
        OptionError: if two arms have one name, or no worker is asked for.
        Interrupted: after SIGINT.
        ScmError: whatever else is wrong with an arm, before any work.
    """
    if workers is not None and workers < 1:
        raise OptionError([f"workers must be 1 or more, not {workers}"])
    arms = list(study.arms())
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError([f"study '{study.name}' has more than one arm called {', '.join(twice)}"])
    for arm in arms:
        arm.recipe.check()
    _open(study, arms, folder)
    started = [arm for arm in arms if not (folder / "runs" / arm.name / MEASURED).is_file()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with progress.task(study.name, len(arms), len(arms) - len(started)) as task:
        done = len(arms) - len(started)
        try:
            for name in _finished(study, started, folder, min(workers or cores, max(1, len(started)))):
                done += 1
                task.update(done)
                progress.say(_line(name, folder))
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(
                f"stopped, {done} of {len(arms)} trainings are done", "go on with the same command"
            ) from None
    measured = {arm.name: _read(folder / "runs" / arm.name / MEASURED) for arm in arms}
    results = Results({(arm.condition, arm.recipe.seed): measured[arm.name]["figures"] for arm in arms})
    seconds = sum(float(each["seconds"]) for each in measured.values())
    findings = Findings(study, folder, tuple(study.judge(results)), results, seconds)
    checkpoint.write_text(folder / "findings.json", json.dumps(findings.to_json(), indent=1) + "\n")
    _draw(findings)
    return findings


def _open(study: Study, arms: Sequence[Arm], folder: Path) -> None:
    """Make the folder of a study, or see that it is the same study that was begun there."""
    digest = hashlib.sha256("".join(sorted({code_digest(arm.recipe, study) for arm in arms})).encode()).hexdigest()[:16]
    own = {"study": options.to_tree(study), "code": digest}
    path = folder / "study.json"
    if path.is_file():
        found = _read(path)
        if found != json.loads(json.dumps(own)):
            what = "other options" if found.get("study") != own["study"] else "another version of the code"
            raise OutputError(f"{folder} holds a study of {what}", "delete it, or choose another place with --out")
        return
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is there already, and holds no study", "choose another place with --out")
    try:
        (folder / "runs").mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}", "choose another place with --out"
        ) from None
    checkpoint.write_text(path, json.dumps(own, indent=1) + "\n")


def _finished(study: Study, arms: Sequence[Arm], folder: Path, workers: int) -> Iterator[str]:
    """Run arms, and yield the name of each when it is done."""
    jobs = [(arm.name, (options.to_tree(study), arm.recipe.to_tree(), str(folder / "runs" / arm.name))) for arm in arms]
    if workers == 1:
        for name, job in jobs:
            with _one_thread():
                _run(*job)
            yield name
        return
    # Processes that begin anew: a fork of a process that has used threads may hang.
    loose = [plugin.source for plugin in registry.plugins() if plugin.source.endswith(".py") and not plugin.error]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(loose,)) as pool:
        futures: dict[Future[None], str] = {pool.submit(_run, *job): name for name, job in jobs}
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield futures.pop(future)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin(loose: Sequence[str]) -> None:
    """Prepare a process that runs arms."""
    torch.set_num_threads(1)
    for path in loose:
        registry.load_file(path)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(study: Mapping[str, Any], recipe: Mapping[str, Any], place: str) -> None:
    """Run one arm, measure it, and leave its figures in its directory."""
    folder, made = Path(place), Recipe.from_tree(recipe)
    chosen: Study = registry.registry("study").create(**study)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / "recipe.yaml", made.to_yaml())
    began = time.process_time()
    try:
        execute(made, folder, prepare(made), Progress())
        figures: Mapping[str, Any] | None = chosen.measure(folder)
        diverged = None
    except DivergenceError as error:
        figures, diverged = None, error.what
    saved = {"figures": figures, "diverged": diverged, "seconds": round(time.process_time() - began, 3)}
    checkpoint.write_text(folder / MEASURED, json.dumps(saved, indent=1, allow_nan=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", "delete it, and conduct the study again") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} cannot be read: it is no mapping", "delete it, and conduct the study again")
    return found


def _line(name: str, folder: Path) -> str:
    saved = _read(folder / "runs" / name / MEASURED)
    return f"{name}: {saved['diverged'] or 'done'}, {saved['seconds']:.0f} s"


def _draw(findings: Findings) -> None:
    from matplotlib.figure import Figure  # imported late: it takes a while

    figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
    findings.study.draw(figure, findings.results)
    temporary = findings.picture.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(findings.picture)
