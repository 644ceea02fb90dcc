"""Data-parallel and sharded training take the tangent and give the gradients of one process on the whole batch.

Two processes meet on this machine, once, and go through all rows: backend, wrapper, tangent pass.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
from interpreter import QUIET

import scmreg

TRITON = importlib.util.find_spec("triton") is not None
ROWS = [
    "-".join(row) for row in distributed_worker.rows([name for name in scmreg.attentions if TRITON or name != "triton"])
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was wrong with each row."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    worker = Path(distributed_worker.__file__)
    commands = [
        [sys.executable, *QUIET, str(worker), str(rank), str(folder)] for rank in range(distributed_worker.WORLD)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), said
    return dict(map(json.loads, said[0][0].splitlines()))


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[row], outcomes[row]
