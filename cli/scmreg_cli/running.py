"""The commands that work: run, sample, eval."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from scmreg import options, pictures, recipe, record
from scmreg import run as runs
from scmreg.errors import CompositionError, OptionError, OutputError
from scmreg.process import Process
from scmreg.recipe import Recipe
from scmreg.registry import registry
from scmreg.sample import Run, Weights, load_run
from scmreg.sampler import Sampler
from scmreg.settings import apply_settings, set_path
from scmreg_cli import progress
from scmreg_cli.showing import table

__all__ = ["evaluate", "run", "sample"]


def run(
    chosen: Mapping[str, Any],
    settings: Sequence[str],
    *,
    recipe: str | None,
    name: str | None,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compose a recipe and carry it out, or go on with a run."""
    shown = progress.make()
    if resume is not None:
        given = [
            *(path for path in chosen if path != "trainer.device"),
            *settings,
            *(str(x) for x in (recipe, name, out) if x),
        ]
        if given:
            raise OptionError(
                [f"--resume goes on with the recipe of the run, it takes no other options: {', '.join(given)}"],
                f"to start a new run from that recipe: scm run --recipe {resume} ...",
            )
        made, folder = runs.recipe_of(resume), resume
        if "trainer.device" in chosen:
            trainer = dataclasses.replace(made.trainer, device=chosen["trainer.device"])
            made = dataclasses.replace(made, trainer=trainer)
        if dry_run:
            print(made.to_yaml(), end="")
            return
        dataset = runs.prepare(made)
    else:
        made = compose(recipe, chosen, settings)
        if dry_run:
            made.check()
            print(made.to_yaml(), end="")
            return
        dataset = runs.prepare(made)
        folder = runs.open_folder(made, out or Path("runs"), name)
    shown.say(f"run: {folder}")
    summary = runs.execute(made, folder, dataset, shown)
    report(summary, as_json=as_json)


def compose(source: str | None, chosen: Mapping[str, Any], settings: Sequence[str]) -> Recipe:
    """Build a recipe from a file, selectors and settings, in this order of precedence."""
    tree = recipe.read(source) if source else {}
    chosen = dict(chosen)
    if "trainer.precision" in chosen:  # the flag means the whole run
        chosen["teacher.trainer.precision"] = chosen["trainer.precision"]
    if chosen.get("teacher.source") == "":
        raise OptionError(["--teacher is empty"], "name the folder of a run, exact, or auto")
    if chosen.get("teacher.source", "auto") not in ("auto", "exact"):
        chosen["teacher.source"] = str(Path(chosen["teacher.source"]).expanduser().absolute())
    # Outer components first: choosing an objective must not wipe out the weighting that was chosen inside it.
    for path in sorted(chosen, key=lambda path: path.count(".")):
        set_path(tree, path, chosen[path])
    apply_settings(tree, settings)
    made = Recipe.from_tree(tree)
    if "teacher.source" in chosen and not made.objective.needs_teacher:
        raise OptionError([f"--teacher is of no use: objective '{made.objective.title}' needs no teacher"])
    return made


def report(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the summary of a run: a table, or one line of JSON with the table on stderr."""
    out = Console(stderr=as_json, width=None if (sys.stderr if as_json else sys.stdout).isatty() else 120)
    results = record.rows(summary)
    figures = record.figures_of(results)
    made = table("model", "evaluations", *figures)
    for title, entry in results:
        made.add_row(
            title,
            str(entry.get("nfe", "")),
            *(f"{entry[key]:.4g}" if key in entry else "" for key in figures),
        )
    out.print(made)
    out.print(f"{summary['seconds']:.0f} seconds; {summary['run']}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(summary))


def sample(
    folder: Path,
    *,
    count: int | None,
    steps: int | None,
    times: str | None,
    labels: str | None,
    seeds: str,
    sampler: str | None,
    guidance: float | None,
    process: str | None,
    weights: str,
    out: Path | None,
    device: str | None,
    settings: Sequence[str],
    as_json: bool,
) -> None:
    """Draw samples from a run and write them."""
    if weights not in ("ema", "raw"):
        raise OptionError([f"--weights {weights}: must be ema (averaged) or raw"])
    target = out or folder / "samples" / "sample.png"
    if target.suffix not in (".png", ".npz"):
        raise OptionError([f"--out {target}: write to a .png (picture) or .npz (arrays) file"])
    opened = load_run(folder)
    if target.suffix == ".png":
        pictures.check_picture(opened.spec)
    drawn_by = choose_sampler(opened, sampler, steps, times, guidance, settings)
    under = _process(opened, process, settings)
    wanted = _numbers(labels, int, "--labels") if labels is not None else None
    classes = len(opened.spec.classes)
    given = _numbers(seeds, int, "--seeds")
    if min(given) < 0:
        raise OptionError([f"--seeds {seeds}: a seed is 0 or more"])
    listed = len(given) if len(given) > 1 else 0
    number = count or listed or (len(wanted) if wanted else 10 * classes if classes else 100)
    seed = given if listed else list(range(given[0], given[0] + number))
    chosen = None
    if wanted:
        chosen = (wanted * (-(-number // len(wanted))))[:number]
    elif classes:
        chosen = [index % classes for index in range(number)]
    images = opened.sample(
        number,
        labels=chosen,
        seed=seed,
        sampler=drawn_by,
        weights=cast("Weights", weights),
        device=device or "auto",
        process=under,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".npz":
            arrays: dict[str, Any] = {"x": images.numpy(), "seeds": np.array(seed)}
            if chosen is not None:
                arrays["labels"] = np.array(chosen)
            np.savez(target, **arrays)
        else:
            pictures.save_samples(images, opened.spec, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from None
    if as_json:
        print(
            json.dumps(
                {
                    "file": str(target),
                    "count": number,
                    "process": under.name,
                    "sampler": options.to_tree(drawn_by),
                    "nfe": drawn_by.evaluations,
                    "labels": chosen,
                    "seeds": seed,
                }
            )
        )
    else:
        print(target)


def evaluate(folder: Path, settings: Sequence[str], *, device: str | None, as_json: bool) -> None:
    """Judge a run again."""
    shown = progress.make()
    opened = load_run(folder)
    tree = opened.recipe.to_tree()
    allowed = ("evaluation.", "sampler.", "sampler=")
    for setting in settings:
        if not setting.startswith(allowed):
            raise OptionError(
                [f"--set {setting}: a trained run can only be judged in another way"],
                "set evaluation.* or sampler.*",
            )
    apply_settings(tree, settings)
    if device:
        tree["trainer"]["device"] = device
    changed = dataclasses.replace(opened, recipe=Recipe.from_tree(tree))
    changed.recipe.check(opened.spec)
    dataset = changed.recipe.data.load()
    teacher = runs.teacher_of(changed, shown)
    summary = runs.evaluate_run(changed, dataset, shown, teacher=teacher, draw=False)
    report(summary, as_json=as_json)


def _process(opened: Run, name: str | None, settings: Sequence[str]) -> Process:
    """Return the process that samples are drawn under: the run's own, or the one that is named."""
    own = opened.recipe.process
    changes = [setting for setting in settings if setting.startswith("process.")]
    if name is None:
        if changes:
            raise OptionError([f"--set {changes[0]}: the process of the run stays what it is"], "name another by --as")
        return own
    same = registry("process")[name] is type(own)
    tree: dict[str, Any] = {"process": options.to_tree(own) if same else {"name": name, "sigma_data": own.sigma_data}}
    apply_settings(tree, changes)
    node = dict(tree["process"])
    built: Process = options.build(registry("process")[node.pop("name")], node)
    return built


def choose_sampler(
    opened: Run,
    name: str | None,
    steps: int | None,
    times: str | None,
    guidance: float | None,
    settings: Sequence[str],
) -> Sampler:
    """Return the sampler of a run, changed as asked."""
    tree: dict[str, Any] = {
        "objective": opened.recipe.objective.name,
        "sampler": options.to_tree(opened.recipe.sampler),
    }
    if name is not None:
        tree["sampler"] = {"name": name}
    for setting in settings:
        if not setting.startswith(("sampler.", "process.")):
            raise OptionError(
                [f"--set {setting}: only options of the sampler can be set here"],
                "write sampler.OPTION=VALUE, or with --as process.OPTION=VALUE",
            )
    apply_settings(tree, [setting for setting in settings if setting.startswith("sampler.")])
    if guidance is not None and not hasattr(registry("sampler")[tree["sampler"]["name"]], "guidance"):
        raise OptionError(
            [f"sampler '{tree['sampler']['name']}' takes no guidance"], "a solver does: --sampler heun, say"
        )
    if guidance is not None:
        set_path(tree, "sampler.guidance", guidance)
    node = dict(tree["sampler"])
    built: Sampler = options.build(registry("sampler")[node.pop("name")], node)
    if times is not None:
        built = built.with_times(_numbers(times, float, "--times"))
        if steps not in (None, built.steps):
            raise OptionError([f"--times {times} makes {built.steps} steps, not {steps}: leave out --steps"])
    elif steps is not None:
        built = built.with_steps(steps)
    drawn = dataclasses.replace(opened.recipe, sampler=built)
    # What the data do not have is said first: no option of the objective would mend it.
    reasons = built.accepts(opened.spec), built.fits(drawn), drawn.objective.drawn_by(built, drawn.process)
    if reason := next((reason for reason in reasons if reason), None):
        raise CompositionError(reason)
    return built


def _numbers(text: str, kind: type, option: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            [f"{option} {text}: write {'integers' if kind is int else 'numbers'} separated by commas"]
        ) from None
