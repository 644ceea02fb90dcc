"""Components: declared once, checked on construction, described everywhere; every registered one keeps the promises."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import scmreg
from scmreg import options
from scmreg.component import Component
from scmreg.errors import OptionError, UnknownComponentError
from scmreg.objective import Objective
from scmreg.registry import KINDS, find, registry
from scmreg.types import Positive
from scmreg.weighting import Weighting, WeightingModule

EVERY = [cls for kind in KINDS for cls in registry(kind).values()]
REQUIRED = {"path": "somewhere"}
KNOWN = ("process", "parameterization", "weighting", "proposal", "schedule", "distance", "metric", "network")
"""Kinds whose options are drawn at random."""
ORDERED = (("beta_min", "beta_max"), ("sigma_min", "sigma_max"), ("s0", "s1"))
"""Options of which the second must be above the first, where a component has both."""


class Example(Weighting, name="example"):
    """Do nothing in particular.

    More about it.
    """

    scale: Positive = 2.0
    """How much."""
    rounds: Annotated[int, Ge(0)] = 3
    """How often,
    at most."""
    mode: Literal["soft", "hard"] = "soft"
    """Which way."""
    times: tuple[Positive, ...] | None = None
    """When."""
    inner: Weighting = Weighting.default("uniform")
    """What is inside."""

    def build(self, process: Any) -> WeightingModule:
        raise AssertionError


def make(cls: type[Component]) -> Component:
    """Return a component with its default options, required ones filled in."""
    required = {o.name for o in options.options_of(cls) if o.default is dataclasses.MISSING}
    return options.build(cls, {name: REQUIRED[name] for name in required})


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: f"{cls.kind}/{cls.name}")
class TestEveryComponent:
    def test_is_documented(self, cls: type[Component]) -> None:
        assert cls.summary().endswith(".")
        assert len(cls.summary()) <= 130
        for option in options.options_of(cls):
            assert option.help, f"{cls.__name__}.{option.name} has no help"

    def test_round_trips_through_json(self, cls: type[Component]) -> None:
        component = make(cls)
        tree = json.loads(json.dumps(options.to_tree(component)))
        assert tree.pop("name") == cls.name
        assert options.build(cls, tree) == component

    def test_has_a_schema(self, cls: type[Component]) -> None:
        schema = json.loads(json.dumps(options.schema(cls)))
        assert set(schema["properties"]) == {option.name for option in options.options_of(cls)}

    def test_is_frozen_and_found_by_its_path(self, cls: type[Component]) -> None:
        assert find(f"{cls.kind}/{cls.name}") is cls
        component = make(cls)
        for option in options.options_of(cls):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(component, option.name, 1)

    def test_says_whether_it_can_run(self, cls: type[Component]) -> None:
        reason = cls.unavailable()
        assert reason is None or (isinstance(reason, str) and reason)


@settings(deadline=None)
@given(data=st.data())
def test_valid_options_are_kept_and_round_trip(data: st.DataObject) -> None:
    """Draw options of any component within their declared types and bounds."""
    cls = data.draw(st.sampled_from([cls for cls in EVERY if cls.kind in KNOWN]))
    values = {o.name: data.draw(_values(o)) for o in options.options_of(cls)}
    for pair in ORDERED:
        if set(pair) <= set(values):
            assume(values[pair[0]] != values[pair[1]])
            values |= dict(zip(pair, sorted(values[name] for name in pair), strict=True))
    component = options.build(cls, values)
    assert {name: getattr(component, name) for name in values} == values
    tree = options.to_tree(component)
    del tree["name"]
    assert options.build(cls, tree) == component


def _values(option: options.Option) -> st.SearchStrategy[Any]:
    annotation = option.annotation
    if option.component is not None:
        return st.sampled_from(list(registry(option.component.kind).values())).map(make)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation is float:
        return st.floats(-100, 100)
    return st.from_type(annotation).filter(lambda x: not isinstance(x, float) or abs(x) < 1e300)


def test_description_of_options() -> None:
    described = {option.name: option for option in options.options_of(Example)}
    assert list(described) == ["scale", "rounds", "mode", "times", "inner"]
    assert described["scale"].type_text == "number > 0"
    assert described["rounds"].help == "How often,\nat most."
    assert described["mode"].choices == ("soft", "hard")
    assert described["times"].optional
    assert described["inner"].component is Weighting
    assert described["inner"].default == "uniform"
    assert Example.summary() == "Do nothing in particular."


def test_values_are_converted_and_components_resolved_by_name() -> None:
    example = Example(scale="3", times=[1, 2], inner="snr")  # type: ignore[arg-type]
    assert example.scale == 3.0
    assert example.times == (1.0, 2.0)
    assert example.inner.name == "snr"
    assert Example().inner == scmreg.weightings.create("uniform")
    nested = options.build(Example, {"inner": {"name": "adaptive", "channels": 8}})
    assert options.to_tree(nested)["inner"] == {"name": "adaptive", "channels": 8}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale": 0}, ["scale", "greater than 0", "not 0"]),
        ({"scale": float("nan")}, ["scale", "finite"]),
        ({"scale": "wide"}, ["scale", "number", "'wide'"]),
        ({"rounds": 1.5}, ["rounds", "integer"]),
        ({"mode": "medium"}, ["mode", "'soft' or 'hard'"]),
        ({"times": [1.0, -1.0]}, ["times[1]", "greater than 0"]),
        ({"inner": "unifrm"}, ["inner", "did you mean 'uniform'"]),
        ({"inner": 3}, ["inner", "must be a weighting"]),
        ({"scael": 1}, ["no option 'scael'", "did you mean 'scale'"]),
        ({"scale": -1, "rounds": -1, "more": 0}, ["3 options", "scale", "rounds", "more"]),
        ({"inner": {"name": "adaptive", "channels": 0}}, ["channels", "greater than or equal to 1"]),
    ],
)
def test_every_refused_value_is_named(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        options.build(Example, values)
    for word in words:
        assert word in str(error.value)


def test_python_constructors_check_too() -> None:
    with pytest.raises(OptionError, match="greater than 0"):
        Example(scale=-1.0)
    with pytest.raises(TypeError):
        Example(scael=1.0)  # type: ignore[call-arg]
    assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(Example).parameters.values())


def test_a_class_is_abstract_or_final() -> None:
    with pytest.raises(TypeError, match="final"):

        class More(Example, name="more"):
            pass

    with pytest.raises(TypeError, match="no component name"):

        class Path(Weighting, name="a/b"):
            pass

    with pytest.raises(TypeError, match=r"'a\+b' is no name of an objective: '\+' is for sums"):

        class Sum(Objective, name="a+b"):
            pass

    class Plus(Weighting, name="a++b"):
        pass

    assert Plus.name == "a++b"

    with pytest.raises(TypeError, match="no kind"):

        class Stray(Component, name="stray"):
            pass

    with pytest.raises(TypeError, match="abstract"):
        Weighting()  # type: ignore[abstract]


def test_registries_are_read_only_mappings() -> None:
    assert list(scmreg.processes) == sorted(scmreg.processes)
    assert "trigflow" in scmreg.processes
    assert scmreg.processes["trigflow"].name == "trigflow"
    assert len(scmreg.processes) == len(list(scmreg.processes))
    with pytest.raises(TypeError):
        scmreg.processes["mine"] = object  # type: ignore[index]
    with pytest.raises(UnknownComponentError, match="did you mean 'trigflow'"):
        scmreg.processes["trigflo"]
    with pytest.raises(KeyError):
        registry("procession")
    with pytest.raises(scmreg.ScmError, match="KIND/NAME"):
        find("trigflow")


def test_paths_become_text() -> None:
    array = scmreg.datasets.create("array", path="a/b.npy")
    assert array.path == Path.cwd() / "a/b.npy"  # absolute: a run is resumed and judged from anywhere
    assert options.to_tree(array)["path"] == str(Path.cwd() / "a/b.npy")
