"""From declarations to checked values, and back: the one module that knows pydantic.

`check` validates a freshly built record in place; `build` makes one from the plain tree that YAML, JSON and the
command line give, and reports everything that is wrong with the tree at once; `to_tree` is its inverse.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from scmreg.component import Component, Options
from scmreg.errors import OptionError, ScmError, did_you_mean

__all__ = ["Option", "build", "check", "options_of", "schema", "to_tree"]

O = TypeVar("O", bound=Options)  # noqa: E741
_CONFIG = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a component or recipe section, as people see it."""

    name: str
    annotation: Any
    default: Any
    help: str
    component: type[Component] | None
    """The kind that the field holds a component of."""
    section: type[Options] | None
    """The record of options that the field holds."""
    many: bool
    """Whether it holds a tuple of components."""
    optional: bool
    """Whether ``None`` is a value."""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the default component that differ from its own defaults."""

    @property
    def type_text(self) -> str:
        """Say the type and its bounds in words."""
        if self.component is not None:
            return f"{self.component.kind}s" if self.many else self.component.kind
        if self.section is not None:
            return self.section.__name__.lower()
        return _type_text(self.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the literal values, where the option is a choice."""
        return tuple(str(arg) for arg in _literals(self.annotation))


def options_of(cls: type[Options]) -> tuple[Option, ...]:
    """Describe every field of a record of options, in the order of declaration."""
    if cls not in _described:
        _described[cls] = _describe(cls)
    return _described[cls]


_described: dict[type[Options], tuple[Option, ...]] = {}


def _describe(cls: type[Options]) -> tuple[Option, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    docs = _field_docs(cls)
    described = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        annotation = hints[field.name]
        bare, optional = _strip_optional(annotation)
        component, section, many = None, None, False
        if inspect.isclass(bare) and issubclass(bare, Component):
            component = bare
        elif inspect.isclass(bare) and issubclass(bare, Options):
            section = bare
        elif typing.get_origin(bare) is tuple:
            inner = typing.get_args(bare)[0]
            if inspect.isclass(inner) and issubclass(inner, Component):
                component, many = inner, True
        if "component" in field.metadata:
            default: Any = field.metadata["component"]
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = None if section else field.default_factory()
        else:
            default = dataclasses.MISSING
        values = field.metadata.get("values", {})
        described.append(
            Option(
                field.name, annotation, default, docs.get(field.name, ""), component, section, many, optional, values
            )
        )
    return tuple(described)


def check(instance: Options) -> None:
    """Validate and convert every field of a record in place.

    Raises:
        OptionError: naming every field whose value is refused, and why.
    """
    problems: list[str] = []
    advice: list[str] = []
    for option in options_of(type(instance)):
        value = getattr(instance, option.name)
        try:
            converted = _convert(option, value, _where(type(instance)))
        except OptionError as error:
            problems += error.problems
            advice += error.advice
            continue
        if converted is not value:
            object.__setattr__(instance, option.name, converted)
    if problems:
        raise OptionError(problems, *advice)


def build(cls: type[O], tree: Mapping[str, Any] | None, where: str = "") -> O:
    """Make a record of options from a plain tree.

    Args:
        cls: the record or component class.
        tree: option names and plain values; a component is a name or a mapping with a ``name``.
        where: how to call the record in messages, such as ``objective.weighting``.

    Raises:
        OptionError: naming every unknown option and every refused value of the whole tree.
    """
    tree = dict(tree or {})
    where = where or _where(cls)
    known = {option.name: option for option in options_of(cls)}
    problems: list[str] = []
    advice: list[str] = []
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            problems.append(f"{where} has no option '{name}'{did_you_mean(str(name), known)} (options: {listed})")
            continue
        try:
            values[name] = _convert(known[name], value, where)
        except OptionError as error:
            problems += error.problems
            advice += error.advice
    for option in known.values():
        if option.default is dataclasses.MISSING and option.name not in tree:
            problems.append(f"{where}.{option.name} is required: {option.help or option.type_text}")
    if problems:
        raise OptionError(problems, *advice)
    return cls(**values)


def to_tree(instance: Options) -> dict[str, Any]:
    """Return the plain tree that `build` turns back into an equal record."""
    tree: dict[str, Any] = {"name": instance.name} if isinstance(instance, Component) else {}
    for option in options_of(type(instance)):
        tree[option.name] = _plain(getattr(instance, option.name))
    return tree


def schema(cls: type[Options]) -> dict[str, Any]:
    """Return a JSON schema of the options of a component or section."""
    properties: dict[str, Any] = {}
    for option in options_of(cls):
        if option.component is not None:
            entry: dict[str, Any] = {"type": "array" if option.many else ["string", "object"]}
            entry["kind"] = option.component.kind
        elif option.section is not None:
            entry = schema(option.section)
        else:
            entry = dict(_adapter(option.annotation).json_schema())
        entry["description"] = option.help
        if option.default is not dataclasses.MISSING:
            entry["default"] = _plain(option.default)
        properties[option.name] = entry
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _where(cls: type[Options]) -> str:
    return f"{cls.kind} '{cls.name}'" if issubclass(cls, Component) else cls.__name__.lower()


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return to_tree(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, PurePath) else value


def _convert(option: Option, value: Any, where: str) -> Any:
    """Return ``value`` as the option wants it, components resolved."""

    def called(item: str) -> str:
        return f"{where}.{item}" if " " not in where else f"{item} of {where}"

    path = called(option.name)
    if value is None and option.optional:
        return None
    if option.component is not None:
        if not option.many:
            return _component(option.component, value, path, option)
        if not isinstance(value, tuple | list):
            raise OptionError([f"{path} must be a list of {option.component.kind}s"])
        return tuple(_component(option.component, item, called(f"{option.name}[{i}]")) for i, item in enumerate(value))
    if option.section is not None:
        if isinstance(value, option.section):
            return value
        if not isinstance(value, Mapping):
            raise OptionError([f"{path} must be a section with options, not {value!r}"])
        return build(option.section, value, path)
    if isinstance(value, bool) and _base(option.annotation) in (int, float):
        raise OptionError(
            [f"{path} must be {'an integer' if _base(option.annotation) is int else 'a number'}, not {value}"]
        )
    count = _length(option.annotation)
    if count is not None and not (isinstance(value, tuple | list) and len(value) == count):
        raise OptionError([f"{path} must be a list of {count} values, not {value!r}"])
    try:
        converted = _adapter(option.annotation).validate_python(value)
        return converted.expanduser().absolute() if isinstance(converted, Path) else converted
    except ValidationError as error:
        details = error.errors()
        # A list whose items are refused is called too short as well.
        details = [detail for detail in details if detail["type"] != "too_short"] or details
        raise OptionError([_words(path, value, detail) for detail in details]) from None


def _component(kind: type[Component], value: Any, path: str, option: Option | None = None) -> Component:
    from scmreg import registry

    if isinstance(value, kind):
        return value
    default = option.default if option else None
    if isinstance(value, str):
        tree: dict[str, Any] = {"name": value}
    elif isinstance(value, Mapping) and isinstance(value.get("name", default), str):
        tree = {"name": default, **value}
    else:
        raise OptionError([f"{path} must be a {kind.kind}: its name, or a mapping with its name, not {value!r}"])
    tree = registry.spelled_out(kind.kind, tree)
    name = tree.pop("name")
    if option is not None and name == default:
        tree = {**option.values, **tree}
    try:
        chosen: type[Component] = registry.registry(kind.kind)[name]
        return build(chosen, tree, f"{path}({name})" if tree else "")
    except OptionError:
        raise
    except ScmError as error:
        where = "" if path == f"recipe.{kind.kind}" else f"{path}: "
        raise OptionError([f"{where}{error.what}"], *error.hints) from None


def _words(path: str, value: Any, detail: Any) -> str:
    inner = ".".join(str(part) for part in detail["loc"] if isinstance(part, int))
    message = detail["msg"].replace("Input should be", "must be").replace("a valid tuple", "a list")
    if detail["type"] in ("int_parsing", "float_parsing", "bool_parsing", "int_from_float"):
        message = message.split(",")[0].replace("valid ", "").replace("a integer", "an integer")
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"{path} must not be empty" if least == 1 else f"{path} must have at least {least} items"
    name, of, owner = path.partition(" of ")
    item = f"[{inner}]" if inner else ""
    return f"{name}{item}{of}{owner} {message}, not {detail.get('input', value)!r}"


def _length(annotation: Any) -> int | None:
    """Return how many values a list must have; ``None`` where it is no list, or any number will do."""
    bare, _ = _strip_optional(annotation)
    args = typing.get_args(bare)
    return len(args) if typing.get_origin(bare) is tuple and Ellipsis not in args else None


_adapters: dict[int, tuple[Any, TypeAdapter[Any]]] = {}


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    # Keyed by identity: an annotation with a list in its metadata has no hash. The annotation is kept alive beside.
    found = _adapters.get(id(annotation))
    if found is None:
        found = _adapters[id(annotation)] = (annotation, TypeAdapter(annotation, config=_CONFIG))
    return found[1]


def _strip_optional(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(inner) == 1:
            return inner[0], True
        return annotation, type(None) in typing.get_args(annotation)
    return annotation, False


def _base(annotation: Any) -> Any:
    """Return the type under bounds and ``None``."""
    bare, _ = _strip_optional(annotation)
    return typing.get_args(bare)[0] if typing.get_origin(bare) is typing.Annotated else bare


def _literals(annotation: Any) -> tuple[Any, ...]:
    bare, _ = _strip_optional(annotation)
    return typing.get_args(bare) if typing.get_origin(bare) is typing.Literal else ()


def _type_text(annotation: Any) -> str:
    bare, optional = _strip_optional(annotation)
    suffix = " or none" if optional else ""
    if typing.get_origin(bare) is typing.Literal:
        return " | ".join(str(arg) for arg in typing.get_args(bare)) + suffix
    if typing.get_origin(bare) is typing.Annotated:
        base, *metadata = typing.get_args(bare)
        return f"{_type_text(base)} {' and '.join(_bounds(metadata))}".strip() + suffix
    if typing.get_origin(bare) is tuple:
        return f"list of {_type_text(typing.get_args(bare)[0])}" + suffix
    if typing.get_origin(bare) is not None:
        return "mapping" + suffix
    words = {str: "text", float: "number", int: "integer", bool: "true | false", Path: "path"}
    return str(words.get(bare, getattr(bare, "__name__", bare))) + suffix


def _bounds(metadata: list[Any]) -> list[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return [
        f"{sign} {bound:g}"
        for item in metadata
        for name, sign in signs.items()
        if (bound := getattr(item, name, None)) is not None
    ]


def _field_docs(cls: type) -> dict[str, str]:
    """Read the strings that stand under fields, in the class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (
            OSError,
            TypeError,
            SyntaxError,
        ):  # defined where no source is kept, such as an interactive session
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for statement, follower in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(follower, ast.Expr)
                and isinstance(follower.value, ast.Constant)
                and isinstance(follower.value.value, str)
            ):
                docs[statement.target.id] = inspect.cleandoc(follower.value.value)
    return docs
