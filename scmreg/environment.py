"""What a training ran on: versions and machine, as its checkpoints remember them."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from scmreg import __version__

__all__ = ["PACKAGES", "environment"]

PACKAGES = ("torch", "triton", "timm", "numpy")
"""Packages that results may depend on."""


def environment(device: torch.device) -> dict[str, str]:
    """Return, as plain values, the versions of what computes and the machine that it computes on.

    Args:
        device: where the training computes.
    """
    found = {"scmreg": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found |= {"device": f"{device} ({shown})", "cpus": str(cpus), "threads": str(torch.get_num_threads())}
    return found | {"platform": platform.platform()}
