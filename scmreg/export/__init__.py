"""A trained run as a folder that others can use without this library.

Two formats. ``program`` takes any run: the model as a program of torch, which ``torch.export.load`` runs, a short file
of Python that samples with it, and the configuration of the scheduler of `diffusers` that does. ``diffusers`` takes a
run whose network is a model of that library: the model as that library saves it, and the scheduler that fits it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser, convert
from scmreg.errors import CompositionError, OptionError, OutputError, RunError
from scmreg.export import program, readme
from scmreg.export.pretrained import fitting
from scmreg.registry import registry
from scmreg.sample import Run, Weights, load_run
from scmreg.sampler import Sampler

__all__ = ["FORMATS", "Export", "Format", "export"]

Format = Literal["program", "diffusers"]
FORMATS = ("program", "diffusers")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    format: str
    files: tuple[str, ...]
    """Names within the folder."""
    notes: tuple[str, ...]
    """What the folder cannot do, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "files": list(self.files),
            "notes": list(self.notes),
        }


def export(
    run: Run | str | Path,
    to: str | Path,
    *,
    format: str = "program",
    sampler: Sampler | None = None,
    weights: Weights = "ema",
) -> Export:
    """Write a finished run as a folder that can be used without scmreg.

    Args:
        run: a run, or its directory.
        to: the folder to make.
        format: ``program`` or ``diffusers``.
        sampler: how the folder samples; as the run itself does if not given.
        weights: averaged (``ema``) or ``raw``.

    Raises:
        OptionError: if there is no such format.
        OutputError: if the folder is there already, or cannot be written.
        CheckpointError: if there is no run.
        RunError: if the run is not finished.
        CompositionError: if the run cannot be written in this form.
    """
    target = Path(to)
    if format not in FORMATS:
        raise OptionError([f"there is no format '{format}'"], f"formats: {', '.join(FORMATS)}")
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists already", "name a folder that is not there yet with --to")
    opened = run if isinstance(run, Run) else load_run(run)
    step, wanted = opened.checkpoint.step, opened.recipe.trainer.steps
    if step < wanted:
        raise RunError(
            f"{opened.folder} is not finished: it has taken {step} of {wanted} steps",
            f"go on with it: scm run --resume {opened.folder}",
        )
    write = _diffusers if format == "diffusers" else _program
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            made = Path(place) / target.name
            made.mkdir()
            notes = write(opened, made, sampler or opened.recipe.sampler, weights)
            files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
            made.rename(target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from None
    return Export(target, format, tuple(files), notes)


def _program(run: Run, folder: Path, sampler: Sampler, weights: Weights) -> tuple[str, ...]:
    denoiser, name = _in_trigflow(run, weights), run.recipe.network.name
    told = sampler.name == "consistency" and getattr(sampler, "guidance", None) is not None
    said = program.sampling(run, sampler, denoiser)
    made = program.trace(denoiser, run.spec.shape, guidance=told, name=name)
    made.save(folder / "velocity.pt2")
    _write(folder / "sampling.json", said | {"inputs": made.inputs})
    shutil.copyfile(Path(__file__).with_name("standalone.py"), folder / "sample.py")
    notes = []
    if sampler.name == "consistency":
        (folder / "scheduler").mkdir()
        config = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": said["sigma_data"]}
        _write(folder / "scheduler" / "scheduler_config.json", config)
    else:
        notes.append("no scheduler of diffusers solves in the time of TrigFlow: sample by sample.py")
    notes.append(
        f"network '{name}' becomes a program, not a model class of diffusers: no pipeline of diffusers loads it"
    )
    page = readme.of_program(said | {"inputs": made.inputs}, tuple(notes))
    (folder / "README.md").write_text(page, encoding="utf-8")
    return tuple(notes)


def _diffusers(run: Run, folder: Path, sampler: Sampler, weights: Weights) -> tuple[str, ...]:
    if sampler.name != "consistency" or getattr(sampler, "guidance", None) is not None:
        raise CompositionError(
            "--format diffusers is for consistency sampling without guidance",
            "--format program knows solvers and guidance",
        )
    denoiser = _in_trigflow(run, weights)
    said = program.sampling(run, sampler, denoiser)
    made = fitting(denoiser, run.spec, said["times"], run.recipe.network.name)
    made.save(folder)
    notes = () if made.pipeline else (_without_pipeline(made.scheduler["_class_name"], run.spec, said["sigma_data"]),)
    (folder / "README.md").write_text(readme.of_pretrained(made, said, notes), encoding="utf-8")
    return notes


def _in_trigflow(run: Run, weights: Weights) -> Denoiser:
    own = run.recipe.process
    return convert(run.denoiser(weights), registry("process").create("trigflow", sigma_data=own.sigma_data))


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _without_pipeline(scheduler: str, spec: DataSpec, sigma_data: float) -> str:
    if scheduler == "SCMScheduler":
        return "diffusers has no pipeline without text for SCMScheduler: sample by the loop in README.md"
    means = ", ".join(f"{mean:.3g}" for mean in spec.mean)
    return (
        "no pipeline is written: those of diffusers take samples for images from -1 to 1, which would need mean 0.5 and"
        f" process.sigma_data twice the standard deviation of the data; here the mean is {means} and the ratio"
        f" {sigma_data / spec.std:.3g}: sample by the loop in README.md"
    )
