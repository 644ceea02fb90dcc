"""Everything that goes wrong through no fault of the code, said in one glance.

A :class:`ScmError` says what is wrong, what would be right, and why it might be so. The command line prints it
without a traceback and exits with status 2; a bug in the code is any other exception and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CheckpointError",
    "CompositionError",
    "DataError",
    "DivergenceError",
    "OptionError",
    "OutputError",
    "PluginError",
    "RecipeError",
    "RunError",
    "ScmError",
    "UnavailableError",
    "UnknownComponentError",
    "WrongResultError",
    "did_you_mean",
]


class ScmError(Exception):
    """A mistake that the user can mend.

    Args:
        what: one line that says what is wrong.
        hints: further lines: what to do instead, why it might be so.
    """

    exit_code = 2

    def __init__(self, what: str, *hints: str | None) -> None:
        self.what = what
        self.hints = tuple(hint for hint in hints if hint)
        super().__init__(what)

    def __str__(self) -> str:
        return "\n  ".join((self.what, *self.hints))


class UnknownComponentError(ScmError, KeyError):
    """A name that no installed plugin registers."""


class OptionError(ScmError, ValueError):
    """An option that does not exist, or a value that it does not take."""

    def __init__(self, problems: Sequence[str], *hints: str | None) -> None:
        self.problems = tuple(problems)
        self.advice = tuple(dict.fromkeys(hint for hint in hints if hint))
        if len(problems) == 1:
            super().__init__(problems[0], *self.advice)
        else:
            super().__init__(f"{len(problems)} options are wrong", *problems, *self.advice)


class CompositionError(ScmError, ValueError):
    """Components that are each fine and do not fit together."""


class RecipeError(ScmError, ValueError):
    """A recipe that cannot be read."""


class DataError(ScmError, ValueError):
    """Data that are missing, corrupt or of the wrong form."""


class CheckpointError(ScmError, ValueError):
    """A checkpoint that is missing, corrupt, foreign or of another model."""


class RunError(ScmError, ValueError):
    """A run directory that cannot be read, or lacks what is asked of it."""


class OutputError(ScmError, OSError):
    """A place that cannot be written to."""


class PluginError(ScmError):
    """A plugin that cannot be loaded."""


class UnavailableError(ScmError, RuntimeError):
    """A component that cannot run on this machine."""


class WrongResultError(UnavailableError):
    """A component that runs on this machine, and computes what is wrong."""


class DivergenceError(ScmError, ArithmeticError):
    """A loss, tangent or gradient that is no longer finite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return f", did you mean '{near[0]}'?" if near else ""
