"""What training does at each time: figures of samples, summed per bin of TrigFlow time.

Losses, weights and norms differ by orders of magnitude between clean data and noise, and a mean over a batch shows none
of it. Every sample between two lines of the log is counted, and a sample is never dropped for a figure that is not
finite: it is counted as such.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scmreg.objective import Loss

__all__ = ["Bins", "edges", "midpoints"]

HELD = 64
"""Batches that are held before they are summed: summing them together spares the device a wait at every step."""

Array = NDArray[np.float64]


def edges(count: int) -> list[float]:
    """Return the edges of ``count`` equal bins of TrigFlow time, ``count + 1`` numbers from 0 to pi/2."""
    return [math.pi / 2 * i / count for i in range(count + 1)]


def midpoints(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the TrigFlow time in the middle of each of ``count`` bins, shape ``(count,)``."""
    return (torch.arange(count, device=device) + 0.5) * (math.pi / 2 / count)


class Bins:
    """Sums of figures per phase and bin of TrigFlow time, since the last line of the log.

    Args:
        count: number of equal bins of ``[0, pi/2]``.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._held: dict[str, list[tuple[tuple[str, ...], bool, Tensor]]] = {}
        self._sums: dict[str, _Sums] = {}

    def add(self, phase: str, loss: Loss) -> None:
        """Count the samples of a training loss, with every figure that it has of them. Of a sum, the samples of its first
        part are counted, and every part has figures of its own.
        """
        for number, (prefix, part) in enumerate(loss.by_name()):
            figures = {"loss": part.per_sample, **part.logs}
            named = {prefix + name: value for name, value in figures.items()}
            self._add(phase, part.t_hat, named, counted=number == 0)

    def add_figures(self, phase: str, t_hat: Tensor, figures: Mapping[str, Tensor]) -> None:
        """Add figures of further samples, which are not training samples.

        Args:
            phase: the phase that they belong to.
            t_hat: TrigFlow times, shape ``(B,)``.
            figures: values by name, each of shape ``(B,)``.
        """
        if figures:
            self._add(phase, t_hat, figures, counted=False)

    def lines(self, step: int) -> list[dict[str, Any]]:
        """Return what was added since the last call, as plain values, one record per phase, and begin anew.

        A record has ``step``, ``phase``, ``count`` (training samples per bin), ``nonfinite`` (samples per bin with a
        figure that is not finite) and ``figures``: by name the mean per bin over the finite values, ``None`` where
        there are none.
        """
        self._fold()
        made = [{"step": step, "phase": phase, **sums.line()} for phase, sums in self._sums.items()]
        self._sums.clear()
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the sums so far as plain values, for a checkpoint between two lines of the log."""
        self._fold()
        return {phase: sums.to_json() for phase, sums in self._sums.items()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from saved sums; those of another number of bins are left out."""
        read = {phase: _Sums.from_json(sums) for phase, sums in saved.items()}
        self._held.clear()
        self._sums = {phase: sums for phase, sums in read.items() if len(sums.count) == self.count}

    def _add(self, phase: str, t_hat: Tensor, figures: Mapping[str, Tensor], *, counted: bool) -> None:
        device = next(iter(figures.values())).device  # times may be elsewhere
        rows = [row.detach().to(device, torch.float32) for row in (t_hat, *figures.values())]
        held = self._held.setdefault(phase, [])
        held.append((tuple(figures), counted, torch.stack(rows)))
        if len(held) > HELD:
            self._fold()

    def _fold(self) -> None:
        """Sum what is held, batch by batch, so that the result does not depend on when this is called."""
        for phase, held in self._held.items():
            sums = self._sums.setdefault(phase, _Sums.empty(self.count))
            for (names, counted), group in itertools.groupby(held, key=lambda entry: entry[:2]):
                blocks = [block for _, _, block in group]
                whole = torch.cat(blocks, dim=1).cpu().double().numpy()
                ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
                for block in np.split(whole, ends, axis=1):
                    sums.add(names, block, counted=counted)
        self._held.clear()


class _Sums:
    """The sums of one phase."""

    def __init__(self, count: Array, nonfinite: Array, figures: dict[str, tuple[Array, Array]]) -> None:
        self.count = count
        self.nonfinite = nonfinite
        self.figures = figures
        """By name the sum and the number of finite values, each of the length of ``count``."""

    @classmethod
    def empty(cls, bins: int) -> _Sums:
        return cls(np.zeros(bins), np.zeros(bins), {})

    def add(self, names: tuple[str, ...], block: Array, *, counted: bool) -> None:
        """Add one batch: the first row of ``block`` is the times, the others the figures by name."""
        bins = len(self.count)
        block = block[:, np.isfinite(block[0])]
        place = np.clip((block[0] * (bins / (math.pi / 2))).astype(np.int64), 0, bins - 1)
        finite = np.isfinite(block)
        if counted:
            self.count += np.bincount(place, minlength=bins)
        self.nonfinite += np.bincount(place[~finite.all(axis=0)], minlength=bins)
        for name, values, valid in zip(names, block[1:], finite[1:], strict=True):
            total, number = self.figures.setdefault(name, (np.zeros(bins), np.zeros(bins)))
            total += np.bincount(place[valid], values[valid], minlength=bins)
            number += np.bincount(place[valid], minlength=bins)

    def line(self) -> dict[str, Any]:
        """Return counts and means."""
        return {
            "count": self.count.astype(int).tolist(),
            "nonfinite": self.nonfinite.astype(int).tolist(),
            "figures": {
                name: [float(f"{s / n:.6g}") if n else None for s, n in zip(total, number, strict=True)]
                for name, (total, number) in self.figures.items()
            },
        }

    def to_json(self) -> dict[str, Any]:
        figures = {name: [total.tolist(), number.tolist()] for name, (total, number) in self.figures.items()}
        return {"count": self.count.tolist(), "nonfinite": self.nonfinite.tolist(), "figures": figures}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> _Sums:
        figures = {name: (np.array(total), np.array(number)) for name, (total, number) in tree["figures"].items()}
        return cls(np.array(tree["count"]), np.array(tree["nonfinite"]), figures)
