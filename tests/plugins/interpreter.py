"""Runs tasks of `triton_worker` in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["QUIET", "work"]

QUIET = ("-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::RuntimeWarning")
"""torch and numpy warn of their own affairs; anything else, as of a slow path of vmap, is an error."""
HERE = Path(__file__).parent


def work(task: str, arguments: Any = None, interpret: bool = True, check: bool = True) -> Any:
    """Run a task of `triton_worker`; return what it yields."""
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *QUIET, str(HERE / "triton_worker.py"), task]
    done = subprocess.run(command, input=json.dumps(arguments), env=environment, capture_output=True, text=True)
    if not check:
        return done
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {len(results)} results: {done.stderr[-3000:]}"
    return results
