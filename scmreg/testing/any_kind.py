"""Checks of every component, whatever its kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from scmreg import options
from scmreg.component import Component
from scmreg.testing.checks import check
from scmreg.testing.strategies import is_path, required
from scmreg.testing.trial import Trial

LONGEST = 130
"""Characters of a summary, which stands in one line of a table."""


@check(examples=1, computes=False)
def documented(trial: Trial) -> None:
    """Component and options say what they are, and the component says whether it can run here."""
    summary = trial.cls.summary()
    # A dataclass without a docstring is given its signature for one.
    written = bool(summary) and not summary.startswith(f"{trial.cls.__name__}(")
    trial.expect(written, "it has no docstring: write what it does in one line below the class statement")
    trial.expect(
        summary.endswith(".") and len(summary) <= LONGEST,
        f"the first line of its docstring is its summary in every list: one sentence with a full stop, of {LONGEST}"
        f" characters at most, not '{summary}'",
    )
    for option in options.options_of(trial.cls):
        trial.expect(bool(option.help), f"option {option.name} has no help: write a string on the line under the field")
    for name in ("formula", "reference"):
        value = getattr(trial.cls, name)
        trial.expect(isinstance(value, str), f"{name} is {value!r}: make it a plain text")
    reason = trial.cls.unavailable()
    trial.expect(
        reason is None or bool(isinstance(reason, str) and reason),
        f"unavailable() returns {reason!r}: return why it cannot run here, None where it can",
    )


@check(examples=1, computes=False)
def default_constructible(trial: Trial) -> None:
    """Every option has a default, but for paths of files."""
    for option in options.options_of(trial.cls):
        trial.expect(
            option.name not in required(trial.cls) or is_path(option),
            f"option {option.name} has no default: give it one, so that the name alone makes the component",
        )
    if all(name in trial.given for name in required(trial.cls)):
        made = trial.default()
        trial.expect(made == trial.default(), "two of them with the same options are not equal: leave __eq__ alone")


@check(examples=10, computes=False)
def options_round_trip(trial: Trial) -> None:
    """Options go to JSON and back unchanged, and have a JSON schema."""
    component = trial.widely()
    tree = options.to_tree(component)
    try:
        back = json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        trial.fail(f"its options cannot be written as JSON ({error}): use numbers, texts, lists and components")
    back.pop("name", None)
    again = options.build(trial.cls, back)
    for option in options.options_of(trial.cls):
        before, after = getattr(component, option.name), getattr(again, option.name)
        trial.expect(
            before == after,
            f"option {option.name} comes back from JSON as {after!r}, it was {before!r}: keep what is given in the"
            " field, and compute what follows from it where it is used",
        )
    trial.expect(again == component, "it comes back from JSON as another component: compare by the fields alone")
    json.dumps(options.schema(trial.cls))


@check(examples=10, computes=False)
def nothing_but_options(trial: Trial) -> None:
    """It is its options: frozen, hashable, equal where they are equal, with no tensor, module or hidden state."""
    component = trial.widely()
    names = {option.name for option in options.options_of(trial.cls)}
    hidden = sorted(set(vars(component)) - names)
    trial.expect(
        not hidden,
        f"it keeps {', '.join(hidden)} beside its options, which no recipe can save: declare a field, or compute it"
        " where it is used",
    )
    for name in sorted(names):
        held = _state_in(getattr(component, name))
        trial.expect(
            held is None,
            f"option {name} holds a {held}, which no recipe can save: make tensors and modules in build()",
        )
    for name in sorted(names):
        try:
            setattr(component, name, getattr(component, name))
        except dataclasses.FrozenInstanceError:
            continue
        trial.fail(f"option {name} can be assigned to: leave __setattr__ of the frozen class alone")
    if any(isinstance(getattr(component, name), Mapping) for name in names):
        return  # which have no hash
    tree = options.to_tree(component)
    tree.pop("name", None)
    try:
        same = hash(component) == hash(options.build(trial.cls, tree))
    except TypeError as error:
        trial.fail(f"it has no hash ({error}): use tuples in place of lists and sets as options")
    trial.expect(same, "components with the same options have different hashes: leave __hash__ and __eq__ alone")


def _state_in(value: Any) -> str | None:
    """Name the type of a tensor, module or function within an option; ``None`` if there is none."""
    if isinstance(value, torch.Tensor | nn.Module | torch.Generator):
        return type(value).__name__
    if isinstance(value, Component):
        return None  # judged on its own
    if isinstance(value, tuple | list | set | frozenset):
        return next((found for item in value if (found := _state_in(item))), None)
    if isinstance(value, Mapping):
        return next((found for item in value.values() if (found := _state_in(item))), None)
    return "function" if callable(value) else None
