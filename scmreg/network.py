"""Networks: what is trained."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from scmreg.component import Component

__all__ = ["Network"]


class Network(Component, kind="network"):
    """A recipe for a module that is called as ``network(x, c_noise, cond)`` and returns the shape of ``x``.

    ``x`` has unit variance and shape ``(B, *shape)``; ``c_noise`` has shape ``(B,)`` and float32 at least. A network
    must support forward-mode differentiation: no in-place writes to parameters or buffers in ``forward``, no batch
    statistics.
    """

    @property
    def takes(self) -> frozenset[str]:
        """The conditions (fields of :class:`~scmreg.types.Conditions`) that it understands."""
        return frozenset({"label"})

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
        """Return the module with fresh parameters.

        Args:
            shape: shape of one sample.
            classes: number of classes; 0 for an unconditional network. Label ``classes`` means "no label".
        """

    def accepts(self, shape: tuple[int, ...]) -> str | None:
        """Say why samples of this shape cannot be its input; ``None`` if they can."""
        return None

    def fits(self, recipe: Any) -> str | None:
        """Refuse an objective that gives conditions the network does not take."""
        missing = recipe.objective.gives - self.takes
        if missing:
            options = [name for name in sorted(missing) if getattr(self, name, None) is False]
            advice = "".join(f": set network.{name}=true" for name in options[:1])
            return f"network '{self.name}' does not take {', '.join(sorted(missing))}{advice}"
        return None
