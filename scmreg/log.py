"""What a training writes down as it goes: ``metrics.jsonl``, ``bins.jsonl``, and TensorBoard if asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scmreg import checkpoint
from scmreg.errors import UnavailableError

__all__ = ["BINS", "METRICS", "Log", "need_tensorboard", "truncate"]

METRICS = "metrics.jsonl"
"""File of a run with one line for each logged step."""
BINS = "bins.jsonl"
"""File of a run with one line for each logged step and phase: figures per bin of time
(:meth:`scmreg.diagnostics.Bins.lines`)."""


class Log:
    """The files of the log of a run, opened to be gone on with.

    Args:
        folder: run directory.
        tensorboard: whether figures also go to TensorBoard.
        start: step from which on TensorBoard forgets what it has.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, start: int) -> None:
        self.folder = folder
        self.board: Any = None
        if tensorboard:
            self.board = need_tensorboard()(str(folder / "tensorboard"), purge_step=start)

    def __enter__(self) -> Log:
        self.metrics = (self.folder / METRICS).open("a", encoding="utf-8")
        self.bins = (self.folder / BINS).open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()
        self.bins.close()
        if self.board is not None:
            self.board.close()

    def write(self, line: dict[str, Any]) -> None:
        """Write the figures of a step."""
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()
        if self.board is not None:
            for name, value in line.items():
                if name != "step":
                    self.board.add_scalar(name, value, line["step"])

    def write_bins(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write what `scmreg.diagnostics.Bins` returned."""
        self.bins.writelines(json.dumps(line) + "\n" for line in lines)
        self.bins.flush()


def truncate(folder: Path, step: int | None) -> None:
    """Drop the lines of steps after ``step``, and a half-written last line: they are about to be written again.

    Args:
        folder: run directory.
        step: the last step that stays; ``None`` to begin anew.
    """
    for name in (METRICS, BINS):
        path = folder / name
        if step is None:
            path.unlink(missing_ok=True)
        elif path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
            checkpoint.write_text(path, "".join(f"{line}\n" for line in kept))


def need_tensorboard() -> Any:
    """Return TensorBoard's writer class.

    Raises:
        UnavailableError: if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UnavailableError(
            "trainer.tensorboard needs the package tensorboard", 'install it with: pip install "scmreg[tensorboard]"'
        ) from None
    return SummaryWriter
