"""Draw samples from the model in this folder; needs torch and numpy, nothing else.

python sample.py --count 16 --seed 0 --out samples.npz

`velocity.pt2` is a program that computes TrigFlow's velocity, `sampling.json` says how to sample with it. With
`x = cos(t) x_0 + sin(t) sigma_data noise` the velocity `v` at `(x, t)` predicts the clean sample
`x_0 = cos(t) x - sin(t) v` and the noise `(sin(t) x + cos(t) v) / sigma_data`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

Velocity = Callable[[Tensor, float, Tensor | None], Tensor]


def load(folder: Path, device: str = "cpu") -> tuple[Velocity, dict[str, Any]]:
    """Return the velocity, a function of samples, one time and their classes, and what `sampling.json` says."""
    said = json.loads((folder / "sampling.json").read_text(encoding="utf-8"))
    exported = torch.export.load(folder / "velocity.pt2")
    program = (exported if device == "cpu" else move_to_device_pass(exported, device)).module()

    def ask(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        inputs = {"x": x, "t": torch.full((len(x),), t, dtype=torch.float64, device=x.device)}
        if label is not None:
            inputs["label"] = label
        if "guidance" in said["inputs"]:  # a model that was distilled with guidance is told its scale
            inputs["guidance"] = torch.full((len(x),), said["guidance"], dtype=torch.float32, device=x.device)
        out: Tensor = program(**inputs)
        return out

    def velocity(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        if "guidance" in said["inputs"] or said["guidance"] == 1:
            return ask(x, t, label)
        if label is None:
            raise ValueError("guidance needs labels")
        without = ask(x, t, torch.full_like(label, len(said["classes"])))
        scale: float = said["guidance"]
        return without + scale * (ask(x, t, label) - without)

    return velocity, said


def noise(seeds: Sequence[int], shape: Sequence[int], draw: int) -> Tensor:
    """Return normal noise: a sample depends on its seed, whatever else is drawn beside it."""
    rows = []
    for seed in seeds:
        digest = hashlib.blake2b(repr((int(seed), "sample", draw)).encode(), digest_size=8).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows.append(torch.empty(*shape).normal_(generator=rng))
    return torch.stack(rows)


@torch.no_grad()
def sample(
    folder: Path,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    device: str = "cpu",
    batch_size: int = 500,
) -> Tensor:
    """Return samples in the units of the data (images from 0 to 1, not clipped), one for each seed.

    Args:
        folder: the exported folder.
        seeds: one for each sample.
        labels: class of each sample; round and round the classes if not given.
        times: falling TrigFlow times, one a step; those of the folder if not given.
        device: where to compute.
        batch_size: samples that are computed at once.

    Raises:
        ValueError: if a label is no class, or the times do not fall from below pi/2 to above 0.
    """
    velocity, said = load(folder, device)
    if labels is not None and not all(0 <= label < len(said["classes"]) for label in labels):
        raise ValueError(f"{list(labels)} must be among the {len(said['classes'])} classes, counted from 0")
    if times and not all(s < t for t, s in itertools.pairwise((math.pi / 2, *times, 0.0))):
        raise ValueError(f"times must fall from below pi/2 to above 0, not {list(times)}")
    if said["classes"] and labels is None:
        labels = [index % len(said["classes"]) for index in range(len(seeds))]
    parts = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        given = None if labels is None else torch.tensor(labels[part], device=device)
        parts.append(_sample(velocity, said, seeds[part], given, tuple(times or said["times"]), device))
    mean = torch.tensor(said["mean"])
    if len(said["shape"]) == 3:  # channels of an image
        mean = mean.reshape(-1, 1, 1)
    scale: float = said["std"] / said["sigma_data"]
    return torch.cat(parts) * scale + mean


def _sample(
    velocity: Velocity,
    said: dict[str, Any],
    seeds: Sequence[int],
    label: Tensor | None,
    times: Sequence[float],
    device: str,
) -> Tensor:
    sigma_data: float = said["sigma_data"]

    def draw(index: int) -> Tensor:
        return sigma_data * noise(seeds, said["shape"], index).to(device)

    def predict(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The clean sample, and the noise times sigma_data."""
        v = velocity(x, t, label)
        return math.cos(t) * x - math.sin(t) * v, math.sin(t) * x + math.cos(t) * v

    x = draw(0)
    if said["method"] == "consistency":
        data, _ = predict(x, times[0])
        for index, t in enumerate(times[1:], start=1):
            data, _ = predict(math.cos(t) * data + math.sin(t) * draw(index), t)
        return data.cpu()
    for t, s in itertools.pairwise((*times, 0.0)):  # the probability flow
        data, eps = predict(x, t)
        x = math.cos(s) * data + math.sin(s) * eps
        if said["method"] == "heun" and s > 0:
            x = x + math.cos(s) * (math.tan(s) - math.tan(t)) / 2 * (predict(x, s)[1] - eps)
    return x.cpu()


def main() -> None:
    """Write samples to a file."""
    parser = argparse.ArgumentParser(description="Draw samples from the model in this folder.")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample")
    parser.add_argument("--labels", type=int, nargs="+", help="classes by index, repeated to the count")
    parser.add_argument("--times", type=float, nargs="+", help="falling TrigFlow times, one a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("samples.npz"))
    given = parser.parse_args()
    if given.count < 1:
        parser.error("--count must be 1 at least")
    labels = None if given.labels is None else list(itertools.islice(itertools.cycle(given.labels), given.count))
    seeds = range(given.seed, given.seed + given.count)
    try:
        drawn = sample(Path(__file__).parent, seeds, labels, given.times, given.device)
    except ValueError as error:
        parser.error(str(error))
    np.savez(given.out, x=drawn.numpy())


if __name__ == "__main__":
    main()
