"""Settings: single values put into the tree of a recipe by path, as ``--set objective.weighting.channels=64`` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from scmreg import options
from scmreg.component import Options
from scmreg.errors import OptionError, ScmError, UnknownComponentError, did_you_mean
from scmreg.recipe import DEFAULT_OBJECTIVE, Recipe, load_yaml, objective_of
from scmreg.registry import registry, spelled_out

__all__ = ["apply_settings", "set_path"]


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set one value in the tree of a recipe, at a path such as ``objective.weighting.channels``.

    A component on the way that the tree leaves to its default is written out by name; one of a list is named, as in
    ``objective.terms.scd.warmup``. Setting a component replaces it whole.

    Raises:
        OptionError: if nothing stands at the path.
    """
    parts = path.split(".")
    node, cls = tree, Recipe
    listed: options.Option | None = None
    for depth, part in enumerate(parts):
        if listed is not None:
            node, cls = _item(node, listed, part, ".".join(parts[:depth]))
            listed = None
            if depth == len(parts) - 1:
                raise OptionError([f"{path} is a component: set one of its options, or {'.'.join(parts[:-1])} whole"])
            continue
        known = {option.name: option for option in options.options_of(cls)}
        if part not in known:
            here = ".".join(parts[:depth]) or "the recipe"
            within = ", ".join(f"{here}.{place}" for place in _within(node, cls, part))
            raise OptionError(
                [f"{here} has no option '{part}'{did_you_mean(part, known)}"],
                f"options: {', '.join(known) or 'none'}",
                f"it is an option of its components: {within}" if within else None,
            )
        if depth == len(parts) - 1:
            if path == "objective":
                _forget_preferences(tree, value)
            node[part] = value
            return
        option = known[part]
        if option.section is not None:
            node = _child(node, part, None)
            cls = option.section  # type: ignore[assignment]
        elif option.component is not None and not option.many:
            node = _child(node, part, _default_component(tree, option, node.get(part)), option.component.kind)
            cls = registry(option.component.kind)[str(node.get("name"))]
        elif option.component is not None:
            listed = option
        elif option.type_text.startswith("mapping"):
            node = _child(node, part, None)
            node[".".join(parts[depth + 1 :])] = value
            return
        else:
            raise OptionError([f"{'.'.join(parts[: depth + 1])} is a value, it has no option '{parts[depth + 1]}'"])


def _forget_preferences(tree: dict[str, Any], objective: Any) -> None:
    """Drop the sampler and the trainer of a tree whose objective becomes another one: they were chosen for the old."""
    try:
        same = "objective" not in tree or objective_of(objective).title == objective_of(tree["objective"]).title
    except ScmError:  # said when the recipe is built
        same = False
    if not same:
        tree.pop("sampler", None)
        tree.pop("trainer", None)


def _default_component(tree: Mapping[str, Any], option: options.Option, given: Any) -> str | None:
    """Return the name of the component that an option has unless it is given by name."""
    if option.default is not None or isinstance(given, str) or (isinstance(given, Mapping) and "name" in given):
        return option.default  # type: ignore[no-any-return]
    return objective_of(tree.get("objective", DEFAULT_OBJECTIVE)).sampler


def _item(node: dict[str, Any], option: options.Option, name: str, here: str) -> tuple[dict[str, Any], type[Any]]:
    """Return the mapping of the component called ``name`` in a list of components, and its class."""
    assert option.component is not None
    kind, items = option.component.kind, _items(node, option, here)
    found = [item for item in items if item.get("name") == name]
    if len(found) != 1:
        names = [str(item.get("name")) for item in items]
        raise OptionError(
            [f"{here} has {'more than one' if found else 'no'} '{name}'{did_you_mean(name, set(names) - {name})}"],
            f"its {kind}s: {', '.join(names) or 'none'}",
        )
    node[option.name] = items
    return found[0], registry(kind)[name]


def _items(node: Mapping[str, Any], option: options.Option, here: str) -> list[dict[str, Any]]:
    """Return the mappings of a list of components, its default written out."""
    given = node.get(option.name, option.default)
    if not isinstance(given, list | tuple) or not all(isinstance(item, str | Mapping) for item in given):
        raise OptionError([f"{here} is {given!r}, which has no options to set"])
    return [{"name": item} if isinstance(item, str) else dict(item) for item in given]


def _within(node: Mapping[str, Any], cls: type[Options], part: str) -> Iterator[str]:
    """Name where the components that are listed in a component have an option called ``part``."""
    for option in options.options_of(cls):
        if option.component is not None and option.many:
            known = registry(option.component.kind)
            for item in _items(node, option, option.name):
                name = str(item.get("name"))
                if name in known and part in {inner.name for inner in options.options_of(known[name])}:
                    yield f"{option.name}.{name}.{part}"


def _child(node: dict[str, Any], part: str, default: str | None, kind: str = "") -> dict[str, Any]:
    """Return the mapping under ``part``, made where it is missing or written as a bare name."""
    child = node.get(part)
    if isinstance(child, str):
        child = {"name": child}
    elif child is None:
        child = {}
    elif not isinstance(child, Mapping):
        raise OptionError([f"{part} is {child!r}, which has no options to set"])
    made = spelled_out(kind, {"name": default, **child} if default else child)
    node[part] = made
    return made


def apply_settings(tree: dict[str, Any], settings: Iterable[str]) -> None:
    """Apply settings of the form ``PATH=VALUE``, the value read as YAML.

    Raises:
        OptionError: if a setting has no such form, or nothing stands at its path.
    """
    problems: list[str] = []
    advice: list[str] = []
    for setting in settings:
        try:
            _apply(tree, setting)
        except OptionError as error:
            problems += error.problems
            advice += error.advice
        except UnknownComponentError as error:
            problems.append(f"--set {setting}: {error.what}")
            advice += error.hints
    if problems:
        raise OptionError(list(dict.fromkeys(problems)), *advice)


def _apply(tree: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise OptionError([f"--set {setting}: write KIND.OPTION=VALUE, such as trainer.steps=100"])
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        value = text
    set_path(tree, path.strip(), value)
