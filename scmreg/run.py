"""A whole run: find or train the teacher, train the model, draw, judge, and leave a run directory.

Every stage looks at what is there before it works, so executing a recipe again in the same directory goes on where
it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import scmreg
from scmreg import checkpoint
from scmreg.component import Component
from scmreg.data import Dataset, DataSpec
from scmreg.denoiser import Denoiser
from scmreg.discovery import LOOSE
from scmreg.errors import (
    CheckpointError,
    CompositionError,
    OptionError,
    OutputError,
    RecipeError,
    UnavailableError,
)
from scmreg.evaluate import Judge, Result
from scmreg.law import ExactDenoiser
from scmreg.log import need_tensorboard
from scmreg.metric import Judged
from scmreg.optimizer import make_optimizer
from scmreg.pictures import comparison
from scmreg.progress import Progress
from scmreg.recipe import Recipe, read
from scmreg.registry import registry
from scmreg.sample import Run, load_run, resolved
from scmreg.sampler import Sampler
from scmreg.train import (
    Interrupted,
    check_same_data,
    cpu_threads,
    resolve_device,
    train,
)

__all__ = ["TeacherModel", "evaluate_run", "execute", "open_folder", "prepare", "recipe_of", "teacher_of"]


SHELF = "teachers"
"""Folder beside the runs that keeps teachers."""


def open_folder(recipe: Recipe, out: Path, name: str | None) -> Path:
    """Make the directory of a new run.

    Args:
        recipe: names the run if nobody does.
        out: the directory of runs.
        name: name of the run; ``None`` for process-objective-data-seed, numbered if it is taken.

    Raises:
        OutputError: if the name is taken, or nothing can be written there.
    """
    chosen = (
        name
        if name is not None
        else f"{recipe.process.name}-{recipe.objective.title}-{recipe.data.name}-s{recipe.seed}"
    )
    folder = out / chosen
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise OutputError(f"'{name}' is no name of a run", "a name has no '/', and does not begin with '.'")
    if name == SHELF:
        raise OutputError(f"'{name}' is where teachers are kept", "choose another --name")
    number = 2
    try:
        out.mkdir(parents=True, exist_ok=True)
        while folder.exists():
            if name is not None:
                raise OutputError(
                    f"the run {folder} exists already",
                    f"go on with it: scm run --resume {folder}",
                    "or choose another --name",
                )
            folder = out / f"{chosen}-{number}"
            number += 1
        (folder / "samples").mkdir(parents=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}", "choose another place with --out"
        ) from None
    checkpoint.write_text(folder / "recipe.yaml", recipe.to_yaml())
    return folder


def prepare(recipe: Recipe) -> Dataset:
    """Check a composition, load its data and check that they fit; nothing is written.

    Raises:
        ScmError: whatever is wrong, before any work.
    """
    # Whether data have classes to guide to is said before what else guidance needs.
    dataset = recipe.data.load() if recipe.guided else None
    recipe.check(None if dataset is None else dataset.spec)
    resolve_device(recipe.trainer.device)
    trainers = [recipe.trainer]
    if recipe.trains_with_teacher and recipe.teacher.source == "auto":
        trainers.append(recipe.teacher_recipe().trainer)
    for trainer in trainers:
        make_optimizer(trainer, [_parameter()])
        if trainer.tensorboard:
            need_tensorboard()
        if trainer.workers and type(recipe.data).__module__.startswith(LOOSE):
            raise CompositionError(
                f"data '{recipe.data.name}' comes from a loose plugin file, which trainer.workers cannot import",
                "set trainer.workers=0, or install the plugin",
            )
    if dataset is None:
        dataset = recipe.data.load()
        recipe.check(dataset.spec)
    if recipe.trains_with_teacher and recipe.teacher.source != "auto":
        _fitting_teacher(recipe, Path(recipe.teacher.source), dataset)
    return dataset


def execute(recipe: Recipe, folder: Path, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Carry out a recipe in a run directory, or what is left of it.

    Returns:
        The summary that is also written to ``summary.json``.

    Raises:
        Interrupted: after SIGINT; what is done stays done.
        OutputError: if the disk is full or read-only, or another process works on the run.
        ScmError: whatever else is wrong.
    """
    lock = FileLock(folder / ".lock")
    if not _lock_at_once(lock):
        raise OutputError(f"another process is working on {folder}", "wait for it, or stop it first")
    try:
        return _execute(recipe, folder, dataset, progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped", f"go on with: scm run --resume {folder}") from None
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in _DISK:
            raise
        raise OutputError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Errors that are the disk's, not the code's."""


def _execute(recipe: Recipe, folder: Path, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    start = time.perf_counter()
    teacher = _teacher(recipe, folder, dataset, progress)
    device = str(resolve_device(recipe.trainer.device))
    train(
        recipe,
        dataset,
        folder,
        progress,
        teacher=teacher.denoiser(device) if teacher else None,
        teacher_run=teacher.identity if teacher else None,
        title="train" if teacher is None else f"train {recipe.objective.title}",
    )
    run = load_run(folder)
    summary = evaluate_run(run, dataset, progress, teacher=teacher, start=start)
    checkpoint.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def evaluate_run(
    run: Run,
    dataset: Dataset,
    progress: Progress,
    *,
    teacher: TeacherModel | None = None,
    start: float | None = None,
    draw: bool = True,
) -> dict[str, Any]:
    """Judge a run and its teacher from the same noise, draw them side by side if asked, and return the summary.

    Raises:
        CheckpointError: if the data are not those that the run was trained on.
    """
    recipe = run.recipe
    check_same_data(run.checkpoint, dataset)
    began = time.perf_counter() if start is None else start
    device = str(resolve_device(recipe.trainer.device))
    judge = Judge(recipe, dataset, progress)
    model = run.denoiser("ema", device)
    with cpu_threads(recipe.trainer, model):
        few, diffusion, floor = _judge_all(judge, model, recipe, teacher, device)
    if draw:
        _draw(run, judge, few, diffusion)
    own_seconds = run.checkpoint.meta["step_seconds"]
    teacher_seconds = teacher.step_seconds if teacher else None
    step_seconds = {"teacher": own_seconds}
    if recipe.objective.few_step:
        step_seconds = {"teacher": teacher_seconds, "student": own_seconds}
    summary = {
        "run": str(run.folder),
        "process": recipe.process.name,
        "objective": recipe.objective.title,
        "seed": recipe.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "floor": _rounded(floor),
        "teacher": _rounded(diffusion.to_json()) if diffusion else None,
        "student": [_rounded(result.to_json()) for result in few],
        "step_seconds": {name: seconds for name, seconds in step_seconds.items() if seconds is not None},
    }
    # A key is there only where it means something; a model without few-step samples has an empty list of them.
    return {key: value for key, value in summary.items() if value not in (None, {})}


def _judge_all(
    judge: Judge, model: Denoiser, recipe: Recipe, teacher: TeacherModel | None, device: str
) -> tuple[list[Result], Result | None, dict[str, float]]:
    """Return the results of the few-step samplers and of the diffusion sampler, and the floor."""
    floor = judge.floor()
    if not recipe.objective.few_step:
        return [], _diffusion(judge, model, recipe.sampler, "model"), floor
    few = [
        judge.judge(f"{steps} step{'s' * (steps > 1)}", model, recipe.sampler.with_steps(steps))
        for steps in recipe.objective.judged_steps(recipe.evaluation.steps)
    ]
    if teacher is None:
        return few, None, floor
    return few, _diffusion(judge, teacher.denoiser(device), recipe.evaluation.teacher_sampler, "teacher"), floor


def _diffusion(judge: Judge, denoiser: Denoiser, sampler: Sampler, title: str) -> Result:
    return judge.judge(f"{title}, {sampler.evaluations} evaluations", denoiser, sampler)


def _draw(run: Run, judge: Judge, few: list[Result], diffusion: Result | None) -> None:
    (run.folder / "samples").mkdir(exist_ok=True)
    spec = judge.reference.spec
    real = judge.reference.all
    panels = [(result.title, result.samples) for result in ([diffusion] if diffusion else []) + few]
    if spec.modality == "points":
        panels.insert(0, ("data", Judged(real.x, real.labels)))
    if not few and diffusion is None:
        return
    comparison(panels, spec, run.folder / "samples" / "comparison.png", real=real.x)
    for result in few + ([diffusion] if diffusion else []):
        name = result.title.split(",")[0].replace(" ", "-")
        alone = [(result.title, result.samples)]
        comparison(alone, spec, run.folder / "samples" / f"{name}.png", real=real.x, rows=12)


def _teacher(recipe: Recipe, folder: Path, dataset: Dataset, progress: Progress) -> TeacherModel | None:
    """Return the teacher of a recipe: the exact one, the run that is named, the one that the run was begun with, the
    cached one, or one trained now.
    """
    if not recipe.objective.needs_teacher:
        return None
    if recipe.teacher.source == "exact":
        progress.say(f"teacher: the exact denoiser of '{recipe.data.name}'")
        return _exact(recipe, dataset.spec)
    if checkpoint.latest(folder / "checkpoints") is not None:
        known = teacher_of(load_run(folder), progress)
        if known is None:
            raise CheckpointError(
                f"{folder} cannot go on without the teacher that it was begun with",
                "put the teacher back, or start a new run",
            )
        progress.say(f"teacher: {known.place}, with which the run was begun")
        return known
    source = recipe.teacher.source
    if source != "auto":
        run = _fitting_teacher(recipe, Path(source), dataset)
        progress.say(f"teacher: {run.folder} (step {run.checkpoint.step})")
        return _trained(run, recipe, folder)
    wanted = recipe.teacher_recipe()
    key = wanted.training_key(dataset.digest, code_digest(wanted))
    place = _shelf(folder) / f"{wanted.process.name}-{wanted.data.name}-{key}"
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".lock"))
    if not _lock_at_once(lock):
        progress.say(f"teacher {place} is being trained by another process, waiting for it")
        lock.acquire()
    try:
        found = checkpoint.latest(place / "checkpoints")
        if found is not None and checkpoint.load(found).step >= wanted.trainer.steps:
            progress.say(f"teacher: found {place} (same recipe, data and code)")
        else:
            progress.say(f"teacher: none of this recipe yet, training one in {place}")
            checkpoint.write_text(place / "recipe.yaml", wanted.to_yaml())
            train(wanted, dataset, place, progress, title="train teacher", resume=folder)
    finally:
        lock.release()
    return _trained(load_run(place), recipe, folder)


def _shelf(folder: Path) -> Path:
    """Return where teachers are kept: beside the runs."""
    return folder.parent / SHELF


def _lock_at_once(lock: FileLock) -> bool:
    """Try to take a lock without waiting."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _fitting_teacher(recipe: Recipe, path: Path, dataset: Dataset) -> Run:
    """Open a run and check that it can teach the recipe.

    Raises:
        CompositionError: naming the first thing that differs.
    """
    run = load_run(path)
    theirs = run.recipe
    if theirs.objective.few_step:
        raise CompositionError(
            f"{path} was trained by '{theirs.objective.title}', a teacher must be a diffusion model",
            "train one with: scm run --objective diffusion",
        )
    ours: list[tuple[str, Any, Any]] = []
    if recipe.starts_from_teacher:
        # As a teacher it is converted; its weights can be gone on with only where they mean the same.
        meaning = theirs.parameterization.under(theirs.process, recipe.process)
        ours = [("parameterization", recipe.parameterization, meaning), ("network", recipe.network, theirs.network)]
    for what, own, other in ours:
        if own != other:
            raise CompositionError(
                f"training cannot start from the weights of {path}: its {what} is {other} under process"
                f" '{recipe.process.name}', not {own}",
                f"give the run that {what}, or start from fresh weights: --set objective.start=scratch",
            )
    was, now = run.spec, dataset.spec
    if (was.shape, len(was.classes)) != (now.shape, len(now.classes)):
        raise CompositionError(
            f"the teacher {path} was trained on samples of shape {was.shape} with {len(was.classes)} classes,"
            f" the data have shape {now.shape} with {len(now.classes)}"
        )
    if (was.classes, was.mean, was.std) != (now.classes, now.mean, now.std):
        raise CompositionError(
            f"the teacher {path} was trained on other data, or another split of them: their scale or classes differ",
            f"give the run the teacher's data ({theirs.data}), or leave out --teacher",
        )
    _check_teacher(run, recipe)
    _check_levels(run, recipe)
    if run.checkpoint.step < theirs.trainer.steps:
        raise CompositionError(
            f"the teacher {path} is unfinished, at step {run.checkpoint.step} of {theirs.trainer.steps}",
            f"finish it: scm run --resume {path}",
        )
    return run


@dataclass(frozen=True)
class TeacherModel:
    """The teacher of a run: a trained run, or the exact denoiser of the data."""

    place: str
    """Where it is, in words."""
    identity: dict[str, str]
    """What a checkpoint says of it: where it is, seen from the run, and the digest of its weights or its law."""
    denoiser: Callable[[str], Denoiser]
    """Returns the model, under the process of the student, on a device."""
    step_seconds: float | None = None
    """Time of a step of its training."""


def _check_teacher(teacher: Run, recipe: Recipe) -> None:
    """Refuse a teacher that the objective cannot learn from, or a sampler that does not fit what it was trained for."""
    if reason := recipe.objective.taught_by(teacher.recipe.objective):
        raise CompositionError(f"teacher {teacher.folder}: {reason}")
    sampler = recipe.evaluation.teacher_sampler
    if reason := sampler.fits(replace(teacher.recipe, sampler=sampler)):
        raise CompositionError(f"evaluation.teacher_sampler and teacher {teacher.folder}: {reason}")


def _check_levels(teacher: Run, recipe: Recipe) -> None:
    """Refuse a teacher that ends below the noise level that its student is sampled from."""
    own, theirs = recipe.process, teacher.recipe.process
    scale = theirs.sigma_data / own.sigma_data
    start, end = min(getattr(recipe.sampler, "sigma_max", math.inf), own.highest_level), theirs.highest_level / scale
    if end < start * (1 - 1e-6):
        raise CompositionError(
            f"the teacher {teacher.folder} ends at noise level {end:g}, its student is to be sampled from {start:g}",
            f"set sampler.sigma_max={end:g}, or take a teacher that knows more noise",
        )


def _trained(teacher: Run, recipe: Recipe, folder: Path) -> TeacherModel:
    """Return the teacher that a run is."""
    _check_teacher(teacher, recipe)
    return TeacherModel(
        str(teacher.folder),
        _identity(teacher, folder),
        lambda device: teacher.denoiser("ema", device, recipe.process),
        teacher.checkpoint.meta["step_seconds"],
    )


def _exact(recipe: Recipe, spec: DataSpec) -> TeacherModel:
    """Return the exact teacher of data that know their law."""
    law = recipe.data.law()
    assert law is not None, "the composition was checked: the data know their law"

    def denoiser(device: str) -> Denoiser:
        if device == "mps":
            raise UnavailableError("the exact denoiser computes in float64, which mps has not", "use --device cpu")
        return ExactDenoiser(law.standardized(spec), recipe.process).to(device)

    return TeacherModel("the exact denoiser", {"source": "exact", "weights": law.digest()}, denoiser)


def _identity(teacher: Run, folder: Path) -> dict[str, str]:
    weights = str(teacher.checkpoint.meta["files"]["ema.safetensors"])
    return {"run": os.path.relpath(teacher.folder.resolve(), folder.resolve()), "weights": weights}


def teacher_of(run: Run, progress: Progress) -> TeacherModel | None:
    """Open the teacher that a trained run had; ``None``, and a word on it, if it is no longer there."""
    identity = run.checkpoint.meta.get("teacher")
    if identity is None:
        return None
    if identity.get("source") == "exact":
        return _exact(run.recipe, run.spec)
    place = (run.folder / identity["run"]).resolve()
    if checkpoint.latest(place / "checkpoints") is None:
        progress.say(f"the teacher is no longer at {place}")
        return None
    teacher = load_run(place)
    if _identity(teacher, run.folder) != identity:
        progress.say(f"the teacher at {place} is another one by now")
        return None
    return _trained(teacher, run.recipe, run.folder)


def code_digest(recipe: Recipe, *more: Component) -> str:
    """Return a digest of the source of the core and of every package whose components the training uses, or which
    ``more`` components are of.
    """
    roots = {Path(scmreg.__file__).parent}
    used = [component for component in recipe.components() if component.kind not in ("sampler", "metric")]
    used += more
    if hasattr(recipe.network, "attention"):
        used += [backend() for backend in registry("attention").values()]
    for component in used:
        top = sys.modules[type(component).__module__.partition(".")[0]]
        file = Path(inspect.getfile(top))
        roots.add(file.parent if hasattr(top, "__path__") else file)
    digest = hashlib.sha256()
    for root in sorted(roots):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            digest.update(path.relative_to(root.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def recipe_of(folder: Path) -> Recipe:
    """Return the recipe of a run directory, finished or not.

    Raises:
        RecipeError: if it has none.
    """
    if not folder.is_dir():
        raise RecipeError(f"no run directory {folder}", "runs are kept under runs/; `scm run` makes one")
    tree, newest = read(folder), checkpoint.latest(folder / "checkpoints")
    try:
        return Recipe.from_tree(tree)
    except OptionError:  # by a plugin that is not here? A checkpoint knows
        if newest is None:
            raise
        return resolved(tree, checkpoint.load(newest).meta, folder)


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(1))


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in figures.items()}
