"""Pictures of samples: titles stand beside each other, over panels of any width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scmreg.data import DataSpec
from scmreg.metric import Judged
from scmreg.pictures import comparison


def test_titles_do_not_run_into_each_other(tmp_path: Path) -> None:
    """Between two long titles over narrow panels there is a blank column."""
    spec = DataSpec("test", (1, 8, 8), "image", ("a", "b"))
    judged = Judged(torch.zeros(16, 1, 8, 8), torch.arange(16) % 2)
    made = comparison([("teacher, 35 evaluations", judged), ("1 step", judged)], spec, tmp_path / "two.png")
    assert made
    head = np.asarray(Image.open(made).convert("L"))[:20]
    written = np.flatnonzero((head < 128).any(0))
    gaps = np.diff(written)
    assert gaps.max() >= 12, "the titles touch"
    assert written[-1] < head.shape[1] - 6
