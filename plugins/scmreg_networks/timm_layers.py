"""The layers of timm that are used here, imported where torchvision's compiled operators may be missing.

timm imports torchvision, and torchvision registers fake versions of two operators of its C++ library. Its wheel is
built against one build of torch and cannot load that library beside another (a CPU-only one, say); the registration
then fails. Declaring the two schemas first is all that it needs: neither operator is called.
"""

from __future__ import annotations

import torch

__all__ = ["Mlp", "PatchEmbed"]


def _has_operator(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(f"torchvision::{name}")) or hasattr(torch.ops.torchvision, name)


_library = torch.library.Library("torchvision", "FRAGMENT")
"""Keeps the declarations alive."""


def _declare_missing() -> None:
    schemas = {
        "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    try:
        import torchvision.extension  # noqa: F401  loads the compiled operators if it can
    except (ImportError, RuntimeError, AttributeError):
        pass
    for name, schema in schemas.items():
        if not _has_operator(name):
            _library.define(schema)


_declare_missing()

from timm.layers import Mlp, PatchEmbed  # noqa: E402
