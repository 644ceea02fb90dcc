"""The training loop: one optimizer step of one phase is its only verb.

Every random draw of step ``k`` comes from a stream keyed by ``(seed, k)``, so a run that is resumed from a checkpoint
goes on exactly as the uninterrupted run would have.
"""

from __future__ import annotations

import copy
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from scmreg import __version__, checkpoint
from scmreg.data import Dataset
from scmreg.denoiser import Denoiser
from scmreg.diagnostics import Bins, midpoints
from scmreg.environment import environment
from scmreg.errors import (
    CheckpointError,
    DivergenceError,
    OptionError,
    ScmError,
    UnavailableError,
)
from scmreg.loader import loader
from scmreg.log import Log, truncate
from scmreg.objective import Loss, Phase, Setup
from scmreg.optimizer import decay, load_state, make_optimizer, options_of_phase, state_tensors
from scmreg.progress import Progress
from scmreg.recipe import Recipe, Trainer
from scmreg.registry import guests
from scmreg.rng import derive, generator
from scmreg.types import Batch, Conditions

__all__ = ["Interrupted", "adopt", "build_denoiser", "resolve_device", "stepper", "train"]


class Interrupted(ScmError):
    """The run was stopped by the user, after a checkpoint."""

    exit_code = 130


def resolve_device(name: str) -> torch.device:
    """Return the device of a name, ``auto`` being the GPU if there is one.

    Raises:
        OptionError: if there is no such name.
        UnavailableError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise OptionError([f"no device called '{name}'"], "devices: auto, cpu, cuda, cuda:1, mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError([f"no device called '{name}'"], "devices: auto, cpu, cuda, cuda:1, mps") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnavailableError(
            f"device '{name}' is not available here: {str(error).splitlines()[0]}",
            "use --device auto, or cpu",
        ) from None
    return device


def build_denoiser(recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int | None = None) -> Denoiser:
    """Return a fresh denoiser of a recipe, its parameters drawn from a stream of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed if seed is None else seed, recipe.objective.title, "init"))
        network = recipe.network.build(shape, classes)
    two_time = "target_time" in recipe.objective.gives
    return Denoiser(network, recipe.process, recipe.parameterization, classes, two_time=two_time)


def train(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    *,
    teacher: Denoiser | None = None,
    teacher_run: Mapping[str, str] | None = None,
    title: str = "train",
    resume: Path | None = None,
) -> Path:
    """Train the model of a recipe, from its newest checkpoint in ``folder`` if there is one.

    Args:
        recipe: what to train, composed and checked.
        dataset: loaded data.
        folder: run directory; checkpoints and the log are put here.
        progress: told of every step.
        teacher: the diffusion model that the objective asks for.
        teacher_run: names the teacher in the checkpoint: its place (``run``) and the digest of its ``weights``.
        title: what the progress is called.
        resume: the run to go on with after an interruption, where it is not the one in ``folder``.

    Returns:
        The folder of the last checkpoint.

    Raises:
        DivergenceError: at the first loss, tangent or gradient that is not finite.
        Interrupted: after SIGINT, with a checkpoint written.
        CheckpointError: if the checkpoint to resume from is of another model.
    """
    loop = _Loop(recipe, dataset, folder, teacher, teacher_run)
    loop.resume()
    devices = [loop.device] if loop.device.type == "cuda" else []
    with cpu_threads(recipe.trainer, loop.denoiser), torch.random.fork_rng(devices=devices):
        return loop.run(progress, title, resume or folder)


def adopt(
    recipe: Recipe, dataset: Dataset, folder: Path, weights: Mapping[str, Tensor], origin: Mapping[str, Any]
) -> Path:
    """Keep weights that were trained elsewhere as the last checkpoint of a run, and return its folder.

    Args:
        recipe: what they were trained for; its objective needs no teacher.
        dataset: loaded data.
        folder: run directory.
        weights: the state of the denoiser.
        origin: where they are from, for the metadata.
    """
    loop = _Loop(recipe, dataset, folder, None, None)
    for model in (loop.denoiser, loop.average):
        checkpoint.load_into(model, weights, "the model")
    loop.step = recipe.trainer.steps
    return loop.save(origin)


def stepper(recipe: Recipe, dataset: Dataset, teacher: Denoiser | None = None) -> Callable[[], dict[str, float]]:
    """Return a function that takes whole training steps, one at a call, always on the first batch: to measure them.

    A step is that of `train`, and moves the random state as that does; reading data is not part of it. Nothing is
    written.

    Args:
        recipe: what to train, composed and checked.
        dataset: loaded data.
        teacher: the diffusion model that the objective asks for.

    Returns:
        A function without arguments that returns the figures of its step.
    """
    loop = _Loop(recipe, dataset, Path(), teacher, None)
    batch = next(iter(loader(dataset, recipe.trainer, derive(*loop.key, "order"), 0, loop.device)))

    def step() -> dict[str, float]:
        figures = loop.take_step(batch)
        loop.step += 1
        return figures

    return step


def check_same_data(saved: checkpoint.Checkpoint, dataset: Dataset) -> None:
    """Refuse data that are not those of a checkpoint.

    Raises:
        CheckpointError: naming the data.
    """
    if saved.meta.get("data_digest") != dataset.digest:
        raise CheckpointError(
            f"{saved.folder} was trained on other data: '{dataset.spec.name}' has changed since",
            "restore the data, or start a new run",
        )


SMALL = 10_000_000
"""Parameters below which a network is computed by one thread on a CPU. Two threads that share short operations wait for
each other, and on a busy machine they wait for most of the time."""


@contextmanager
def cpu_threads(trainer: Trainer, module: nn.Module) -> Iterator[None]:
    """Use as many CPU threads as the trainer says, or as suit the module."""
    small = sum(parameter.numel() for parameter in module.parameters()) < SMALL
    before = torch.get_num_threads()
    torch.set_num_threads(trainer.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Loop:
    """State of a training run, and its one step."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        folder: Path,
        teacher: Denoiser | None,
        teacher_run: Mapping[str, str] | None,
    ) -> None:
        self.recipe, self.trainer, self.dataset, self.folder = recipe, recipe.trainer, dataset, folder
        self.checkpoints = folder / "checkpoints"
        self.key = (recipe.seed, recipe.objective.title)  # a teacher and its student draw different numbers
        self.device = resolve_device(self.trainer.device)
        self.teacher_run = None if teacher_run is None else dict(teacher_run)
        self.denoiser = build_denoiser(recipe, dataset.spec.shape, len(dataset.spec.classes)).to(self.device)
        if teacher is not None:
            teacher = teacher.to(self.device).eval().requires_grad_(False)
            if recipe.starts_from_teacher:
                checkpoint.load_into(self.denoiser, teacher.state_dict(), "the teacher")
        trainer = self.trainer
        setup = Setup(self.denoiser, dataset.spec, teacher, trainer.tangent_pass, trainer.compile, steps=trainer.steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(*self.key, "objective"))
            self.objective = recipe.objective.build(setup).to(self.device)
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.nets: dict[str, Any] = {"model": self.denoiser}
        for name, module in self.objective.named_children():
            self.nets.setdefault(name, module)
        for name in (name for phase in self.objective.phases for name in phase.nets if name not in self.nets):
            self.nets[name] = self.objective.get_submodule(name)
        self._check_ownership(teacher)
        self.parameters = {phase.name: self._parameters(phase) for phase in self.objective.phases}
        self.optimizers = {phase.name: self._optimizer(phase) for phase in self.objective.phases}
        if self.trainer.compile:
            self.nets["model"] = torch.compile(self.denoiser)
        self.bins = Bins(self.trainer.log_bins)
        self.step = 0
        self.seconds = 0.0
        self.step_seconds: list[float] = []

    # Checkpoints ------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.latest(self.checkpoints)
        if found is None:
            truncate(self.folder, None)
            self._forget_previews()
            return
        saved = checkpoint.load(found)
        before = (saved.meta.get("teacher") or {}).get("weights")
        if before != (self.teacher_run or {}).get("weights"):
            raise CheckpointError(
                f"{found} was trained with another teacher than the one that is there now",
                "name the teacher it was trained with by --teacher, or start a new run",
            )
        check_same_data(saved, self.dataset)
        checkpoint.load_into(self.denoiser, saved.tensors("model", self.device), str(found))
        checkpoint.load_into(self.average, saved.tensors("ema", self.device), str(found))
        if list(self.objective.state_dict()):
            checkpoint.load_into(self.objective, saved.tensors("objective", self.device), str(found))
        for name, optimizer in self.optimizers.items():
            load_state(optimizer, saved.tensors(f"optimizer-{name}"), saved.meta["optimizers"][name])
        self.step, self.seconds = saved.step, float(saved.meta["seconds"])
        self.step_seconds = [float(saved.meta["step_seconds"])] if saved.meta["step_seconds"] else []
        self.bins.load(saved.meta.get("bins", {}))
        truncate(self.folder, self.step)
        self._forget_previews()

    def save(self, further: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint of everything that the run needs to go on, and further metadata."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.denoiser.state_dict(),
            "ema": self.average.state_dict(),
        }
        if list(self.objective.state_dict()):
            parts["objective"] = self.objective.state_dict()
        groups = {}
        for name, optimizer in self.optimizers.items():
            parts[f"optimizer-{name}"], groups[name] = state_tensors(optimizer)
        meta = {
            "scmreg": __version__,
            "recipe": self.recipe.to_tree(),
            "plugins": guests(self.recipe.components()),
            "data": self.dataset.spec.to_json(),
            "data_digest": self.dataset.digest,
            "teacher": self.teacher_run,
            "optimizers": groups,
            "seconds": self.seconds,
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            "bins": self.bins.to_json(),
            "environment": environment(self.device),
            **(further or {}),
        }
        return checkpoint.save(self.checkpoints, self.step, parts, meta, self.trainer.keep)

    # The loop ---------------------------------------------------------------------------------------------------

    def run(self, progress: Progress, title: str, resume: Path) -> Path:
        """Train to the last step and return the last checkpoint."""
        total = self.trainer.steps
        found = checkpoint.latest(self.checkpoints)
        if self.step >= total and found is not None:
            return found
        batches = iter(loader(self.dataset, self.trainer, derive(*self.key, "order"), self.step, self.device))
        log = Log(self.folder, tensorboard=self.trainer.tensorboard, start=self.step)
        with progress.task(title, total, self.step) as task, _interruptible() as stop, log:
            while self.step < total:
                start = time.perf_counter()
                batch = next(batches)
                try:
                    figures = self.take_step(batch)
                except DivergenceError:
                    log.write_bins(self.bins.lines(self.step + 1))
                    raise
                self.step += 1
                elapsed = time.perf_counter() - start
                self.seconds += elapsed
                self.step_seconds.append(elapsed)
                task.update(self.step, figures.get("loss"))
                if self.step % self.trainer.log_every == 0 or self.step == total:
                    self._diagnose(batch)
                    log.write({"step": self.step, "seconds": round(self.seconds, 3), **figures})
                    log.write_bins(self.bins.lines(self.step))
                if self.step % self.trainer.checkpoint_every == 0 or self.step == total or stop:
                    found = self.save()
                    self._preview(progress)
                if stop and self.step < total:
                    raise Interrupted(
                        f"stopped at step {self.step} of {total}, checkpoint written to {found}",
                        f"go on with: scm run --resume {resume}",
                    )
        assert found is not None, "the last step writes a checkpoint"
        return found

    def take_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Take one optimizer step of every phase that is due, and return the figures to log."""
        figures: dict[str, float] = {}
        torch.manual_seed(derive(*self.key, "dropout", self.step))
        rng = generator(*self.key, "loss", self.step)
        for phase in self.objective.phases:
            if not phase.due(self.step):
                continue
            optimizer, parameters = self.optimizers[phase.name], self.parameters[phase.name]
            base = options_of_phase(self.trainer, phase).learning_rate
            rate = base * phase.rate * decay(self.trainer, self.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            loss = 0.0
            prefix = "" if len(self.objective.phases) == 1 else f"{phase.name}_"
            for part in self._parts(batch):
                with self._autocast():
                    result = self.objective.loss(phase.name, self.nets, part, self.step, rng)
                self.bins.add(phase.name, result)
                self._check(result, phase)
                share = len(part.x0) / self.trainer.batch_size
                (result.total * share).backward()
                loss += float(result.total.detach()) * share
                for name, value in result.by_name("" if result.parts else prefix):
                    shown = {**value.logs, "loss": value.per_sample} if result.parts else value.logs
                    for log, figure in shown.items():
                        figures[name + log] = figures.get(name + log, 0.0) + float(figure.mean()) * share
            norm = float(nn.utils.clip_grad_norm_(parameters, self.trainer.clip or math.inf))
            if not math.isfinite(norm):
                raise DivergenceError(
                    f"the gradient of {self.recipe.objective.title} is not finite at step {self.step + 1}",
                    self._advice(),
                )
            optimizer.step()
            figures |= {f"{prefix}loss": loss, f"{prefix}gradient_norm": norm, f"{prefix}learning_rate": rate}
        if (first := f"{self.objective.phases[0].name}_loss") in figures:
            figures["loss"] = figures[first]
        self._average()
        return figures

    def _diagnose(self, batch: tuple[Tensor, Tensor]) -> None:
        """Add what the objective has to tell of one sample in every bin of time. Every step draws its own random
        numbers, so what is drawn here changes nothing.
        """
        torch.manual_seed(derive(*self.key, "diagnose", self.step))
        rng = generator(*self.key, "diagnose", self.step)
        part = next(self._parts(batch))
        t_hat = midpoints(self.trainer.log_bins, self.device)
        index = torch.arange(len(t_hat), device=self.device) % len(part.x0)
        chosen = Batch(part.x0[index], part.cond.take(index))
        for phase in self.objective.phases:
            with torch.no_grad(), self._autocast():
                told = self.objective.diagnose(phase.name, self.nets, chosen, t_hat, self.step, rng)
            self.bins.add_figures(phase.name, t_hat, told)

    def _preview(self, progress: Progress) -> None:
        """Keep a picture of samples of the averaged model."""
        from scmreg.preview import (
            preview,
        )  # imported late: it draws with what loads runs, which is built on this module

        preview(self.recipe, self.average, self.dataset.spec, self.folder, self.step, progress)

    def _forget_previews(self) -> None:
        from scmreg.preview import forget_after

        forget_after(self.folder, self.step)

    def _parts(self, batch: tuple[Tensor, Tensor]) -> Iterator[Batch]:
        """Scale a batch, vary it, move it to the device and cut it into the parts of the accumulation."""
        rendered, labels = batch
        rng = generator(*self.key, "augment", self.step)
        rendered = self.recipe.data.augmentation.apply(rendered, rng)
        x0 = self.dataset.spec.scale(rendered, self.recipe.process.sigma_data).to(self.device, non_blocking=True)
        label = labels.to(self.device, non_blocking=True) if self.dataset.spec.classes else None
        cond, size = Conditions(label=label), math.ceil(len(x0) / self.trainer.accumulation)
        for start in range(0, len(x0), size):
            yield Batch(x0[start : start + size], cond.slice(start, start + size))

    def _average(self) -> None:
        """Move the averaged weights towards the current ones."""
        half_life = min(self.trainer.ema_half_life, (self.step + 1) / 10)
        beta = 0.5 ** (1 / half_life) if self.trainer.ema_half_life else 0.0
        with torch.no_grad():
            pairs = list(zip(self.average.parameters(), self.denoiser.parameters(), strict=True))
            torch._foreach_lerp_([mean for mean, _ in pairs], [now for _, now in pairs], 1 - beta)
            for mean, now in zip(self.average.buffers(), self.denoiser.buffers(), strict=True):
                mean.copy_(now)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.trainer.precision == "bfloat16")

    def _check(self, result: Loss, phase: Phase) -> None:
        """Stop at the first figure that is not finite; nothing is masked."""
        parts = list(result.by_name())
        logged = (value for _, part in parts for value in part.logs.values())
        if bool(torch.isfinite(result.total)) and all(bool(torch.isfinite(value).all()) for value in logged):
            return
        figures = [
            (prefix + name, part, ~torch.isfinite(value))
            for prefix, part in parts
            for name, value in {**part.logs, "loss": part.per_sample}.items()
        ]
        everything = ("weight", result, torch.ones_like(result.per_sample, dtype=torch.bool))
        name, part, bad = next((found for found in figures if found[2].any()), everything)
        times = part.t_hat[bad.to(part.t_hat.device)]
        raise DivergenceError(
            f"{name.replace('_', ' ')} of {self.recipe.objective.title} is not finite at step {self.step + 1}"
            f" (phase {phase.name}), for {int(bad.sum())} of {len(bad)} samples",
            f"their TrigFlow times lie in [{float(times.min()):.4f}, {float(times.max()):.4f}] of [0, 1.5708]",
            self._advice(),
        )

    def _check_ownership(self, teacher: Denoiser | None) -> None:
        """Refuse an objective that owns the model, or parameters that no phase moves: a mistake of its author.

        Raises:
            TypeError: naming the module or parameter.
        """
        lent = {id(module) for module in (self.denoiser, teacher) if module is not None}
        for name, module in self.objective.named_modules():
            if id(module) in lent:
                raise TypeError(
                    f"{type(self.objective).__name__}.{name} makes the model a part of the objective: read it"
                    " from self.setup, which does not own it"
                )
        moved = {name for phase in self.objective.phases for name in (*phase.own, *phase.nets)}
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad and not any(name.startswith(f"{module}.") for module in moved):
                raise TypeError(
                    f"no phase of {type(self.objective).__name__} moves its parameter {name}: name"
                    f" '{name.partition('.')[0]}' in Phase(own=...) or Phase(nets=...)"
                )

    def _advice(self) -> str:
        more = ""
        if hasattr(self.recipe.objective, "warmup"):
            more = ", a longer objective.warmup, a lower and broader objective.proposal, tangent normalization l2"
        return f"try a lower trainer.learning_rate, trainer.clip{more}; the run keeps its last checkpoint"

    def _parameters(self, phase: Phase) -> list[nn.Parameter]:
        names = (*phase.nets, *phase.own)
        modules = [self.denoiser if name == "model" else self.objective.get_submodule(name) for name in names]
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        return make_optimizer(options_of_phase(self.trainer, phase), self.parameters[phase.name])


class _Stop:
    """Whether a stop was asked for."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Turn the first SIGINT into a request to stop after the current step; a second one stops at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
