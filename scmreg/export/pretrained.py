"""A network that another library can save by itself, written with the scheduler of `diffusers` that fits it.

Nothing is assumed of how a run's network wraps the other library's model: that the scheduler and the saved model make
the same predictions as the run is tried here, and what does not is refused.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.types import Conditions

__all__ = ["Pretrained", "fitting", "saved_by_itself"]

GRID = 1_000_001
"""Times of the consistency scheduler, among which those of the sampler are: they are hit to a millionth."""
TOLERANCE = 1e-4
"""Largest difference of predictions, relative to the largest element: some rounding in float32."""


@dataclass(frozen=True)
class Pretrained:
    """A model of another library, and a scheduler under which it is the model of the run."""

    model: Any
    """Has ``save_pretrained`` and a ``config``."""
    folder: str
    """``unet`` or ``transformer``, as pipelines of `diffusers` call it."""
    scheduler: dict[str, Any]
    """Configuration of the scheduler."""
    times: list[Any]
    """What its ``set_timesteps`` is given."""
    pipeline: str | None
    """Name of the pipeline of `diffusers` that samples as the run does; ``None`` where there is none."""

    def save(self, folder: Path) -> None:
        """Write the model, the scheduler and, if there is a pipeline, its index."""
        self.model.save_pretrained(folder / self.folder, safe_serialization=True)
        (folder / "scheduler").mkdir()
        _write(folder / "scheduler" / "scheduler_config.json", self.scheduler)
        if self.pipeline:
            index = {
                "_class_name": self.pipeline,
                "_diffusers_version": importlib.metadata.version("diffusers"),
                "scheduler": ["diffusers", self.scheduler["_class_name"]],
                self.folder: ["diffusers", type(self.model).__name__],
            }
            _write(folder / "model_index.json", index)


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def saved_by_itself(network: nn.Module) -> Any | None:
    """Return the module of a network that another library can save, if it has all of the parameters."""
    for module in network.modules():
        if callable(getattr(module, "save_pretrained", None)) and hasattr(module, "config"):
            theirs = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
            ours = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
            return module if theirs == ours else None
    return None


def fitting(denoiser: Denoiser, spec: DataSpec, times: Sequence[float], name: str) -> Pretrained:
    """Find the scheduler under which the model that a network wraps is the model of the run.

    Args:
        denoiser: the model in TrigFlow coordinates, on the CPU, in evaluation mode.
        spec: shape, classes and scale of the data.
        times: TrigFlow times of the steps of consistency sampling.
        name: name of the network, for messages.

    Raises:
        CompositionError: if the network wraps no such model, or none of the schedulers fits.
    """
    model = saved_by_itself(denoiser.network)
    if model is None:
        raise CompositionError(
            f"network '{name}' is not a model of diffusers, nor one that wraps it and has no other parameters",
            "--format program exports any network",
        )
    sigma_data = denoiser.process.sigma_data
    differences = {}
    for scheduler, form in (("SCMScheduler", _trigflow), ("CMStochasticIterativeScheduler", _consistency)):
        differences[scheduler] = _difference(denoiser, spec.shape, form(model, sigma_data))
        if differences[scheduler] <= TOLERANCE:
            break
    else:
        shown = ", ".join(f"{name} by {difference:.1e}" for name, difference in differences.items())
        raise CompositionError(
            f"no scheduler of diffusers asks the model of network '{name}' for what it was trained to give",
            f"relative to the largest element, predictions differ under {shown}",
            "--format program exports any network",
        )
    config: dict[str, Any] = {
        "_class_name": scheduler,
        "_diffusers_version": importlib.metadata.version("diffusers"),
        "sigma_data": sigma_data,
    }
    folder = "unet" if "UNet" in type(model).__name__ else "transformer"
    if scheduler == "SCMScheduler":
        config |= {"num_train_timesteps": 1000, "prediction_type": "trigflow"}
        return Pretrained(model, folder, config, [*times, 0.0], None)
    levels = [sigma_data * math.tan(t) for t in times]
    config |= {"num_train_timesteps": GRID, "sigma_min": 0.0, "sigma_max": levels[0], "rho": 7.0}
    config |= {"s_noise": 1.0, "clip_denoised": False}
    steps = [round((1 - (level / levels[0]) ** (1 / 7)) * (GRID - 1)) for level in levels]
    pipeline = (
        "ConsistencyModelPipeline" if type(model).__name__ == "UNet2DModel" and pictured(spec, sigma_data) else None
    )
    return Pretrained(model, folder, config, steps[::-1], pipeline)


def pictured(spec: DataSpec, sigma_data: float) -> bool:
    """Whether samples are images from -1 to 1, as pipelines of `diffusers` take them to be: to half a grey level."""
    offset = max(abs(mean - 0.5) for mean in spec.mean)
    return max(offset, abs(spec.std / sigma_data - 0.5) * 2) < 0.5 / 255


Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _trigflow(model: Any, sigma_data: float) -> Predict:
    """Velocity of a model that is asked as sCM's is."""

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        out: Tensor = model(x / sigma_data, t.float(), class_labels=label, return_dict=False)[0]
        return sigma_data * out

    return velocity


def _consistency(model: Any, sigma_data: float) -> Predict:
    """Velocity of a model that is asked as EDM's is, a thousand times its time: ``F`` has the other sign."""

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time = 250 * torch.log(sigma_data * torch.tan(t))
        out: Tensor = model(x / sigma_data, time.float(), class_labels=label, return_dict=False)[0]
        return -sigma_data * out

    return velocity


@torch.no_grad()
def _difference(denoiser: Denoiser, shape: tuple[int, ...], form: Predict) -> float:
    """Return how far predictions of the velocity are apart, relative to the largest element."""
    rng = torch.Generator().manual_seed(0)
    x = denoiser.process.sigma_data * torch.randn(8, *shape, generator=rng)
    t = torch.linspace(0.05, 1.55, 8, dtype=torch.float64)
    label = torch.arange(8) % denoiser.classes if denoiser.classes else None
    ours, theirs = denoiser.velocity(x, t, Conditions(label=label)), form(x, t, label)
    if theirs.shape != ours.shape:
        return math.inf
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
