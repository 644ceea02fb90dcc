"""The page "One process, many coordinates" is true: its closed forms are the code's, its figures are drawn."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scmreg import registry
from scmreg.coordinates import from_trig, process_time, to_trig, trig_time
from scmreg.process import Process

pytest.importorskip("mkdocs", reason="the site is built with the extra 'docs'")

ROOT = Path(__file__).parents[2]
MATHEMATICS = {"atan": torch.atan, "tan": torch.tan, "sin": torch.sin, "cos": torch.cos, "exp": torch.exp}
MATHEMATICS |= {"log": torch.log, "sqrt": torch.sqrt}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scmreg_docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # as MkDocs does
        spec.loader.exec_module(module)
    return module


def value(formula: str, process: Process, **known: object) -> torch.Tensor:
    """Compute a formula as the table writes it: a blank between factors is a product, what follows a comma a name."""
    formula = formula.replace("t̂", "t_hat").replace("²", "**2")
    expression, *rest = formula.split(", ")
    names = {**MATHEMATICS, **known, "pi": math.pi, "sigma_data": process.sigma_data}
    names |= {name: getattr(process, name) for name in ("beta_min", "beta_max") if hasattr(process, name)}
    for definition in rest:
        name, _, body = definition.partition(" = ")
        names[name] = names[name] if f"{name}(t)" == body else value(body, process, **known)
    python = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", expression)
    return torch.as_tensor(eval(python, {"__builtins__": {}}, names), dtype=torch.float64)


def draws(process: Process) -> torch.Tensor:
    """Return TrigFlow times that every process has."""
    high = math.atan(min(process.highest_level, 80.0) / process.sigma_data)
    return torch.linspace(0.01, high, 50, dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [0.5, 0.3, 1.7])
@pytest.mark.parametrize("name", registry.registry("process"))
def test_closed_forms_are_those_of_the_code(hooks: ModuleType, name: str, sigma_data: float) -> None:
    process = registry.registry("process").create(name, sigma_data=sigma_data)
    closed = hooks.CONVERSIONS[name]
    t_hat = draws(process)
    t = process_time(process, t_hat)
    known = {}
    if "B(t)" in closed.t_hat:
        known = {"B": process.beta_min * t + (process.beta_max - process.beta_min) * t**2 / 2}
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(value(closed.t_hat, process, t=t, **known), trig_time(process, t), **close)
    torch.testing.assert_close(value(closed.t, process, t_hat=t_hat), t, **close)
    scale = value(closed.scale, process, t_hat=t_hat).expand(t.shape)
    torch.testing.assert_close(scale, from_trig(process, torch.ones_like(t_hat), t_hat)[0], **close)


def test_a_process_of_a_plugin_has_the_general_form(hooks: ModuleType) -> None:
    """What the table says of a process that it does not know."""
    process = registry.registry("process").create("vp")
    t = process_time(process, draws(process))
    at = process.coefficients(t)
    known = {"alpha": at.alpha, "sigma": at.sigma}
    torch.testing.assert_close(value(hooks.OTHERWISE.t_hat, process, **known), trig_time(process, t))
    scale = process.std(t) / process.sigma_data
    torch.testing.assert_close(value(hooks.OTHERWISE.scale, process, **known), scale)


def test_every_trajectory_is_the_same_one(hooks: ModuleType) -> None:
    curves = {}
    for name, process in hooks.processes().items():
        t, x = sys.modules["figures"].trajectory(process)
        x_hat, t_hat = to_trig(process, x, t)
        assert (t.diff() < 0).all()
        curves[name] = (t_hat, x_hat)
    grid = torch.linspace(0.01, 1.56, 300, dtype=torch.float64)
    ours = curves.pop("trigflow")
    for name, theirs in curves.items():
        difference = interpolated(grid, *theirs) - interpolated(grid, *ours)
        assert difference.abs().max() < 1e-4, name


def interpolated(grid: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Interpolate between the points of a trajectory of falling times."""
    t, x = t.flip(0), x.flip(0)
    after = torch.searchsorted(t, grid).clamp(1, len(t) - 1)
    share = (grid - t[after - 1]) / (t[after] - t[after - 1])
    return x[after - 1] + share * (x[after] - x[after - 1])


def test_figures_are_transparent_and_the_same_each_time(hooks: ModuleType) -> None:
    drawn = hooks.pictures()
    assert {Path(path).stem for path in drawn} == {
        f"{figure}-{theme}" for figure in ("coordinates", "trajectory") for theme in ("light", "dark")
    }
    for path, picture in drawn.items():
        root = ET.fromstring(picture)
        assert root.tag.endswith("svg"), path
        assert b"fill: #ffffff" not in picture, path
        assert all(colour.encode() in picture for colour in sys.modules["figures"].COLOURS[: len(hooks.processes())])
    assert sys.modules["figures"].draw_coordinates("light") == drawn["explanation/coordinates-light.svg"]


def test_a_page_may_ask_only_for_what_there_is(hooks: ModuleType) -> None:
    asked = {
        name
        for path in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"<!-- generated: (.+?) -->", path.read_text(encoding="utf-8"))
    }
    assert asked == set(hooks.GENERATED)
