"""Batches of training data, in an order that is a function of the seed and the step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from scmreg.data import Dataset
from scmreg.recipe import Trainer
from scmreg.rng import generator

__all__ = ["loader"]


class Indexed(TorchDataset[Any]):
    """Training items for a loader: a batch of indices at a time."""

    def __init__(self, dataset: Dataset) -> None:
        self.split = dataset.train

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        labels = self.split.labels
        chosen = torch.zeros(0) if labels is None else labels[torch.as_tensor(indices)]
        return self.split.__getitems__(indices), chosen

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])


class Order:
    """Batches of indices from step ``start`` on: one permutation after the other, cut into batches."""

    def __init__(self, count: int, batch: int, seed: int, start: int) -> None:
        self.count, self.batch, self.seed, self.start = count, batch, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, place = divmod(self.start * self.batch, self.count)
        order = self._permutation(epoch)
        while True:
            indices: list[int] = []
            while len(indices) < self.batch:
                taken = order[place : place + self.batch - len(indices)]
                indices += taken
                place += len(taken)
                if place == self.count:
                    epoch, place = epoch + 1, 0
                    order = self._permutation(epoch)
            yield indices

    def _permutation(self, epoch: int) -> list[int]:
        order: list[int] = torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).tolist()
        return order


def loader(dataset: Dataset, trainer: Trainer, seed: int, start: int, device: torch.device) -> DataLoader[Any]:
    """Return an endless loader of ``(items, labels)`` from step ``start`` on.

    Args:
        dataset: whose training part is read.
        trainer: size of a batch, processes that read ahead.
        seed: of the order.
        start: steps taken before.
        device: where batches will go.
    """
    return DataLoader(
        Indexed(dataset),
        batch_sampler=Order(len(dataset.train), trainer.batch_size, seed, start),
        collate_fn=_as_is,
        num_workers=trainer.workers,
        persistent_workers=trainer.workers > 0,
        multiprocessing_context="spawn" if trainer.workers else None,
        worker_init_fn=_leave_interrupts,
        pin_memory=device.type == "cuda",
    )


def _as_is(items: Any) -> Any:
    return items


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the loop: it reaches every process, and a worker that dies of it would take the loop along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
