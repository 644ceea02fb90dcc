"""The layers of timm that are used here, imported where torchvision's compiled operators may be missing.

timm imports torchvision, which registers stand-ins for two operators of its C++ library. Its wheel is built against one
build of torch and cannot load that library beside another (a CPU-only one, say); the registration then fails with
"operator torchvision::nms does not exist". Declaring the two schemas is all that it needs: neither operator is called.
Where the library can be loaded, nothing is declared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["Mlp", "PatchEmbed"]

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def load_operators() -> bool:
    """Load torchvision's compiled operators without importing it; return whether they are there."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(library)
        except OSError:  # built against another torch
            return False
    return hasattr(torch.ops.torchvision, "nms")


def declare_missing() -> torch.library.Library | None:
    """Declare the operators that are missing; return what keeps the declarations alive."""
    if load_operators():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


_declared = declare_missing()

from timm.layers import Mlp, PatchEmbed  # type: ignore[attr-defined]  # noqa: E402
