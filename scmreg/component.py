"""What a component is: a frozen, keyword-only dataclass whose fields are its options.

A declaration says everything once. ``Annotated`` bounds are the validation, the string under a field is its help,
the class docstring is the page in the reference; the command line, recipes, JSON and ``scm show`` all read it here.

>>> class Linear(Process, name="linear"):
...     \"\"\"Move from data to noise in a straight line: ``x_t = (1 - t) x_0 + t noise``.\"\"\"
...     noise_scale: Positive = 1.0
...     \"\"\"Standard deviation of the noise endpoint.\"\"\"
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC
from typing import Any, ClassVar, Self, dataclass_transform

__all__ = ["Component", "Options"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Options:
    """A frozen record of checked options: the base of components and of the sections of a recipe.

    Raises:
        OptionError: on construction, naming every field whose value is refused.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        from scmreg import options

        options.check(self)


class Component(Options, ABC):
    """A named part of a method. Subclass one of its kinds (:class:`~scmreg.process.Process`, ...), not this class.

    A class is either abstract and has no name, or final and has one:
    ``class Process(Component, kind="process")`` opens a kind, ``class TrigFlow(Process, name="trigflow")`` fills it.
    """

    kind: ClassVar[str] = ""
    """The interface that the component implements, as in ``scm list KIND``."""
    name: ClassVar[str] = ""
    """The name it is registered under; empty for an abstract class."""
    reference: ClassVar[str] = ""
    """Where it comes from: paper and equation; several are separated by semicolons."""
    bibtex: ClassVar[str] = ""
    """BibTeX entries of works in `reference` that :mod:`scmreg.bibliography` does not have, for `scm cite`."""
    formula: ClassVar[str] = ""
    """Its defining equation in one line of plain text."""

    def __init_subclass__(cls, *, kind: str = "", name: str = "", **keywords: Any) -> None:
        for base in cls.__mro__[1:]:
            if isinstance(base.__dict__.get("name"), str) and base.__dict__["name"]:
                raise TypeError(
                    f"{cls.__name__} extends {base.__name__}, which is registered as '{base.__dict__['name']}': "
                    "a named component is final; share code through an abstract class without a name"
                )
        if kind:
            cls.kind = kind
        if name:
            if not cls.kind:
                raise TypeError(f"{cls.__name__} has a name but no kind: extend Process, Objective or another kind")
            if "/" in name or " " in name or name != name.strip().lower():
                raise TypeError(f"'{name}' is no component name: lower case, without '/' and spaces")
            if "+" in name and cls.kind == "objective":
                raise TypeError(f"'{name}' is no name of an objective: '+' is for sums of them")
        cls.name = name
        super().__init_subclass__(**keywords)

    @classmethod
    def default(cls, name: str, **values: Any) -> Self:
        """Declare a field whose default is the component registered as ``name``, looked up when it is needed.

        Packages so refer to each other's components without importing each other.
        """
        kind = cls.kind

        def create() -> Any:
            from scmreg import registry

            return registry.registry(kind).create(name, **values)

        field: Self = dataclasses.field(default_factory=create, metadata={"component": name, "values": values})
        return field

    @classmethod
    def defaults(cls, *names: str) -> tuple[Self, ...]:
        """Declare a field whose default is a tuple of components, each with its default options."""
        kind = cls.kind

        def create() -> Any:
            from scmreg import registry

            return tuple(registry.registry(kind).create(name) for name in names)

        field: tuple[Self, ...] = dataclasses.field(default_factory=create, metadata={"component": names})
        return field

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].strip()

    @classmethod
    def unavailable(cls) -> str | None:
        """Say why the component cannot run on this machine; ``None`` where it can."""
        return None

    def fits(self, recipe: Any) -> str | None:
        """Say why the component cannot be part of ``recipe`` (:class:`~scmreg.recipe.Recipe`); ``None`` if it can."""
        return None
