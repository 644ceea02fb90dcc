"""`scm check`: what it tries, what it prints, and what it says of wrong input."""

from __future__ import annotations

import pytest
import torch

from scmreg.testing import checks_of
from scmreg_cli import completion

PLUGIN = '''
"""A process and a sampler with a mistake each."""

import torch
import scmreg
from scmreg.process import Coefficients, Process
from scmreg.sampler import OdeSampler


class Straight(Process, name="straight"):
    """Move from data to noise in a straight line."""

    t_max = 0.999

    def coefficients(self, t):
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, one, one)

    def time_of(self, ratio):
        return 1 / (1 + 1 / ratio)


class Step(OdeSampler, name="step"):
    """Take steps of DDIM."""

    order = 2

    def step(self, here, to, ask, before, process):
        return here.ddim(to)


@scmreg.hookimpl
def scmreg_components():
    return [Straight, Step]
'''


@pytest.fixture
def plugin(workplace, registries):
    (workplace / "mine.py").write_text(PLUGIN, encoding="utf-8")
    return "mine.py"


def test_a_component(scm):
    threads = torch.get_num_threads()
    result = scm("check", "distance/l2", "--examples", "2")
    assert result.code == 0, result.out
    assert "zero-between-equals" in result.out
    assert "It is 0 between equal samples, where its gradient is finite" in result.out
    assert "7 of 7 checks hold" in result.out
    assert torch.get_num_threads() == threads


def test_as_json(scm):
    import scmreg

    result = scm("check", "schedule/ict", "--examples", "3", "--json")
    assert result.code == 0
    assert [entry["check"] for entry in result.json] == [each.name for each in checks_of(scmreg.schedules["ict"])]
    assert all(entry["holds"] and entry["cases"] in (1, 3) for entry in result.json)
    assert {entry["component"] for entry in result.json} == {"schedule/ict"}


def test_a_mistake_is_told_in_words_that_say_what_to_fix(scm, plugin):
    result = scm("check", "straight", "--plugin", plugin, "--examples", "5")
    assert result.code == 1
    assert (
        "✗ process-derivatives: process 'straight': velocity's derivative: alpha'(t) is off by 2 at t = 0.4995;"
        " coefficients() gives alpha_prime = 1, expected the derivative of alpha, -1\n"
    ) in result.out
    assert "  with its default options; seed 0, batch 1, samples of shape (1,); sigma_data" not in result.out
    assert "9 of 10 checks hold" in result.out


def test_everything_that_a_file_brings(scm, plugin):
    result = scm("check", "--plugin", plugin, "--examples", "2", "--json")
    assert result.code == 1
    failed = {(entry["component"], entry["check"]) for entry in result.json if not entry["holds"]}
    assert failed == {("process/straight", "process-derivatives"), ("sampler/step", "declared-order")}


def test_a_file_by_its_name(scm, plugin):
    result = scm("check", "mine", "--plugin", plugin, "--examples", "2", "--seed", "1")
    assert result.code == 1
    assert "sampler/step" in result.out
    assert "set order = 1, or mend the step" in result.out


def test_a_plugin_stands_for_all_that_it_brings(scm):
    result = scm("check", "flow", "--examples", "1", "--json")
    assert {entry["component"] for entry in result.json} == {"process/flow", "parameterization/flow"}


def test_what_cannot_be_tried_is_told(scm):
    result = scm("check", "data/array", "--examples", "1")
    assert result.code == 0
    assert "? data/array: it needs a value for path" in result.out
    assert "4 of 4 checks hold" in result.out
    for entry in scm("check", "data/array", "--json").json:
        assert (entry["holds"] is None) == bool(entry["untried"])


def test_options_that_are_given(scm, workplace):
    import numpy as np

    np.save("points.npy", np.random.default_rng(0).normal(size=(50, 2)))
    result = scm("check", "data/array", "--set", "path=points.npy", "--set", "shift=0", "--set", "flip=false", "--json")
    assert result.code == 0, result.json
    assert not any(entry["untried"] for entry in result.json)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vpp",), ["no component and no plugin is called 'vpp', did you mean 'vp'?", "`scm list`"]),
        (("process/vpp",), ["no process called 'vpp', did you mean 'vp'?"]),
        (("edm",), ["'edm' is process/edm and weighting/edm", "and the plugin of process/edm", "write KIND/NAME"]),
        ((), ["name what to check: KIND/NAME, a plugin, or --plugin FILE.py"]),
        (("process/vp", "--set", "beta_max"), ["--set beta_max has no value", "write OPTION=VALUE"]),
        (("process/vp", "--set", "beta_mx=3"), ["no option 'beta_mx', did you mean 'beta_max'?"]),
        (("process/vp", "--set", "beta_max=-3"), ["beta_max", "greater than 0"]),
        (("flow", "--set", "sigma_data=1"), ["--set is for one component", "name one by KIND/NAME"]),
        (("process/vp", "--examples", "0"), ["examples"]),
        (("data/images", "--set", "path=nowhere"), ["no folder"]),
    ],
)
def test_wrong_input(scm, arguments, words):
    result = scm("check", *arguments)
    assert result.code == 2
    assert result.out == ""
    for each in words:
        assert each in result.err


def test_completion():
    def offered(incomplete):
        return [name for name, _ in completion.checkable(incomplete)]

    assert "process/vp" in offered("process/")
    assert "heun" in offered("he")
    assert offered("edm") == ["edm-grid"]  # edm itself is several
    assert "metrics" in offered("metr")
