"""`scm study`: its list, what it prints, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scmreg import registry

PLUGIN = '''
import scmreg
from scmreg.study import Verdict

class Small(scmreg.Study, name="small"):
    """Whether anything comes of three steps."""

    reference = "nobody"
    columns = ("sliced_wasserstein@1",)

    rate: float = 1e-3
    """Learning rate."""

    def arms(self):
        tree = {
            "data": {"name": "swissroll", "count": 200},
            "network": {"name": "mlp", "width": 8, "depth": 1},
            "objective": "ct",
            "trainer": {"steps": 3, "batch_size": 8, "learning_rate": self.rate, "previews": 0},
            "evaluation": {"steps": [1], "count": 50, "metrics": ["sliced-wasserstein"]},
        }
        return self.under_seeds({"as it is": tree})

    def judge(self, results):
        told = results.listed("sliced_wasserstein@1")
        return [Verdict("it is below 100", results.mean("as it is", "sliced_wasserstein@1") < 100, told),
                Verdict("it is below 0", results.mean("as it is", "sliced_wasserstein@1") < 0, told)]

    def draw(self, figure, results):
        figure.subplots()

@scmreg.hookimpl
def scmreg_components():
    return [Small]
'''


@pytest.fixture
def small(registries: None, workplace: Path) -> list[str]:
    """The words that conduct a small study."""
    (workplace / "small.py").write_text(PLUGIN)
    return ["study", "small", "--plugin", "small.py", "--workers", "1"]


def test_the_list(scm):
    result = scm("study")
    assert result.code == 0, result.err
    for name, cls in registry.registry("study").items():
        assert name in result.out
        assert cls.summary().split()[0] in result.out
    assert [entry["name"] for entry in scm("study", "--json").json] == list(registry.registry("study"))


def test_a_study_says_what_held(scm, small, workplace):
    result = scm(*small, "--set", "seeds=2")
    assert result.code == 0, result.err
    assert "as-it-is-s1: done" in result.err
    assert "not held: it is below 0" in result.out
    assert "\nheld: it is below 100" in result.out
    assert "Means over 2 seeds" in result.out
    assert "studies/small/figure.png" in result.out
    assert (workplace / "studies" / "small" / "figure.png").is_file()


def test_json_is_what_is_kept(scm, small, workplace):
    result = scm(*small, "--set", "seeds=1", "--out", "there", "--json")
    assert result.code == 0, result.err
    assert result.json == json.loads((workplace / "there" / "findings.json").read_text())
    assert [verdict["held"] for verdict in result.json["verdicts"]] == [True, False]
    assert result.json["figures"]["as it is"][0]["sliced_wasserstein@1"] > 0


def test_divergence_is_a_result(scm, small):
    result = scm(*small, "--set", "seeds=1", "--set", "rate=1e30")
    assert result.code == 0, result.err
    assert "diverged" in result.out
    assert "One seed" in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["segmnts"], "no study called 'segmnts', did you mean 'segments'?"),
        (["segments", "--set", "seads=1"], "segments has no option 'seads', did you mean 'seeds'?"),
        (["segments", "--set", "seeds"], "--set seeds: write OPTION=VALUE"),
        (["segments", "--set", "seeds=0"], "greater than or equal to 1"),
        (["segments", "--set", "segments=[0]"], "segments[0]"),
        (["segments", "--set", "segments=[1]"], "segments"),
        (["segments", "--out", "taken"], "taken is there already, and holds no study"),
        (["segments", "--workers", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_input(scm, workplace, words, said):
    (workplace / "taken").mkdir()
    (workplace / "taken" / "file").touch()
    result = scm("study", *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (workplace / "studies").exists()


def test_other_options_in_the_same_place_are_refused(scm, small):
    assert scm(*small, "--set", "seeds=1").code == 0
    result = scm("study", "small", "--set", "seeds=2")  # the plugin has been loaded
    assert result.code == 2
    assert "holds a study of other options" in result.err
