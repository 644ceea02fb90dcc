"""The commands that read: list, show, plugins, doctor."""

from __future__ import annotations

import json
import re

import pytest

import scmreg
from scmreg import matrix, registry
from scmreg.options import options_of

EVERY = [(kind, name) for kind in registry.KINDS for name in registry.registry(kind)]


def test_list_names_every_component(scm):
    result = scm("list")
    assert result.code == 0
    assert result.err == ""
    rows = {tuple(line.split()[:2]) for line in result.out.splitlines() if line.strip()}
    assert set(EVERY) <= rows
    assert len(EVERY) > 20


def test_list_as_json(scm):
    listed = scm("list", "--json").json
    assert [(entry["kind"], entry["name"]) for entry in listed] == EVERY
    for entry in listed:
        assert set(entry) == {"kind", "name", "summary", "unavailable"}
        assert len(entry["summary"]) > 10
        assert entry["unavailable"] is None or isinstance(entry["unavailable"], str)


def test_list_one_kind(scm):
    listed = scm("list", "process", "--json").json
    assert [entry["name"] for entry in listed] == sorted(scmreg.processes)
    text = scm("list", "process").out
    assert "trigflow" in text
    assert "heun" not in text


def test_list_unknown_kind(scm):
    result = scm("list", "proces")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: no kind called 'proces', did you mean 'process'?")
    assert "weighting" in result.err


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_show_tells_everything(scm, kind, name):
    cls = registry.registry(kind)[name]
    text = scm("show", f"{kind}/{name}").out
    assert f"{kind}/{name}" in text
    flat = " ".join(text.split())
    for option in options_of(cls):
        assert option.name in text
        assert option.help, f"{option.name} has no help"
    if cls.reference:
        assert " ".join(cls.reference.split())[:60] in flat
    shown = scm("show", f"{kind}/{name}", "--json").json
    assert (shown["kind"], shown["name"]) == (kind, name)
    assert shown["formula"] == cls.formula
    assert shown["reference"] == cls.reference
    assert set(shown["options"]["properties"]) == {option.name for option in options_of(cls)}


def test_show_options_with_defaults_and_bounds(scm):
    text = scm("show", "process/trigflow").out
    row = next(line for line in text.splitlines() if line.split()[:1] == ["sigma_data"])
    assert "> 0" in row
    assert "0.5" in row
    options = scm("show", "objective/scd", "--json").json["options"]["properties"]
    declared = {option.name: option for option in options_of(scmreg.objectives["scd"])}
    assert options["normalization"]["default"] == declared["normalization"].default
    assert set(options["normalization"]["enum"]) >= {"l2", "rms"}
    assert options["weighting"]["kind"] == "weighting"
    assert options["weighting"]["default"] == declared["weighting"].default
    assert options["weighting"]["default"] in scmreg.weightings
    assert options["warmup"]["minimum"] == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("trigflow", ["KIND/NAME"]),
        ("process/", ["KIND/NAME"]),
        ("process/trigflo", ["no process called 'trigflo'", "did you mean 'trigflow'", "available: cosine, edm, flow"]),
        ("proces/trigflow", ["no kind called 'proces'", "did you mean 'process'"]),
    ],
)
def test_show_of_what_is_not_there(scm, path, words):
    result = scm("show", path)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err


def test_plugins(scm):
    listed = scm("plugins", "--json").json
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["trigflow"]["components"] == ["process/trigflow"]
    assert by_name["trigflow"]["source"] == f"scmreg {scmreg.__version__}"
    ours = [entry for entry in listed if entry["source"].startswith("scmreg ")]
    assert len(ours) >= 11
    assert all(entry["error"] is None and entry["seconds"] >= 0 for entry in ours)
    told = {path for entry in listed for path in entry["components"]}
    assert told == {f"{kind}/{name}" for kind, name in EVERY}
    text = scm("plugins").out
    assert all(name in text for name in by_name)


def test_doctor(scm):
    import torch

    report = scm("doctor", "--json").json
    assert (
        report["packages"]["torch"] == torch.__version__.partition("+")[0]
        or report["packages"]["torch"] == torch.__version__
    )
    assert report["devices"][0] == "cpu"
    assert len(report["devices"]) >= 1 + torch.cuda.device_count()
    assert report["components"] == {kind: len(registry.registry(kind)) for kind in registry.KINDS}
    assert report["broken_plugins"] == {}
    assert report["cpus"] >= 1
    text = scm("doctor").out
    assert torch.__version__ in text
    for path in report["unavailable"]:
        assert path in text
    assert ("no problems" in text) == (not report["unavailable"])


def test_doctor_tells_what_cannot_run_here(scm, monkeypatch):
    monkeypatch.setattr(scmreg.processes["edm"], "unavailable", classmethod(lambda cls: "needs [a] moon"))
    assert scm("doctor", "--json").json["unavailable"]["process/edm"] == "needs [a] moon"
    text = scm("doctor").out
    assert "process/edm: needs [a] moon" in text
    assert "no problems" not in text
    assert "needs [a] moon" in scm("list", "process").out
    entry = next(e for e in scm("list", "process", "--json").json if e["name"] == "edm")
    assert entry["unavailable"] == "needs [a] moon"
    assert "needs [a] moon" in scm("show", "process/edm").out


# What fits with what --------------------------------------------------------------------------------------------------


def cells(text):
    """Read the tables and the footnotes of `scm list --matrix`: cells by table, row and column, and texts by number."""
    tables, title, columns, notes = {}, "", [], {}
    for line in text.splitlines():
        parts = re.split(r"\s{2,}", line.strip())
        number, _, reason = line.partition(" ")
        if " × " in line:
            title, columns = parts[0].partition(":")[0], []
            tables[title] = {}
        elif number.isdigit():
            notes[int(number)] = reason
        elif len(parts) > 1 and not columns:
            columns = parts
        elif len(parts) > 1:
            tables[title][parts[0]] = dict(zip(columns, parts[1:], strict=True))
    return tables, notes


def read(cell, notes):
    """Return the names in a cell, and the reason why others are not there."""
    names, _, number = cell.partition("(")
    return names.strip(), notes[int(number.rstrip(")"))] if number else None


def test_the_matrix_as_json(scm):
    listed = scm("list", "--matrix", "--json").json
    verdicts = matrix.compositions() + matrix.pairs() + matrix.shapes()
    assert listed == [{**verdict.names, "reason": verdict.reason} for verdict in verdicts]
    assert {entry["reason"] is None for entry in listed} == {True, False}


def test_the_matrix_as_tables(scm):
    result = scm("list", "--matrix")
    assert (result.code, result.err) == (0, "")
    tables, notes = cells(result.out)
    assert sorted(notes) == list(range(1, len(notes) + 1))
    assert len(set(notes.values())) == len(notes)
    shown, groups = set(), {}
    for verdict in matrix.compositions():
        groups.setdefault((verdict.names["parameterization"], verdict.names["process"]), []).append(verdict)
    whole = tables.pop("process × parameterization")
    assert {(row, column) for row, found in whole.items() for column in found} == set(groups)
    for (row, column), verdicts in groups.items():
        names, reason = read(whole[row][column], notes)
        shown.add(reason)
        fitting = [verdict.names["objective"] for verdict in verdicts if verdict.reason is None]
        if len(fitting) == len(verdicts):
            assert (names, reason) == ("✓", None)
        else:
            assert names == (", ".join(fitting) or "–")
            assert reason in [verdict.reason for verdict in verdicts if verdict.reason]
    others = matrix.pairs() + matrix.shapes()
    for verdict in others:
        (above, column), (left, row) = verdict.names.items()
        names, reason = read(tables[f"{left} × {above}"][row][column], notes)
        shown.add(reason)
        assert (names, reason) == ("✓" if verdict.reason is None else "–", verdict.reason)
    assert len(others) == sum(len(row) for table in tables.values() for row in table.values())
    assert shown - {None} == set(notes.values())


def test_the_matrix_is_of_all_kinds_at_once(scm):
    for arguments in (("process", "--matrix"), ("process", "--matrix", "--json")):
        result = scm("list", *arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: --matrix shows all kinds at once: leave out 'process'")


PLUGIN = '''
import scmreg
from scmreg.parameterization import Parameterization, Preconditioning


class Direct(Parameterization, name="direct"):
    """Predict the data."""

    def preconditioning(self, process, t):
        at = process.coefficients(t)
        return Preconditioning(t * 0, t * 0 + 1, 1 / at.sigma, -at.alpha / at.sigma, 1 / process.std(t))


@scmreg.hookimpl
def scmreg_components():
    return [Direct]
'''


@pytest.mark.usefixtures("registries")
def test_the_matrix_asks_a_plugin_too(scm, workplace):
    (workplace / "plug.py").write_text(PLUGIN)
    listed = scm("list", "--matrix", "--json", "--plugin", "plug.py").json
    found = {(e["process"], e["objective"]): e["reason"] for e in listed if e.get("parameterization") == "direct"}
    assert len(found) == len(scmreg.processes) * len(scmreg.objectives)
    for (process, objective), reason in found.items():
        refused = (
            f"objective '{objective}' needs f(x, 0) = x, which parameterization 'direct' does not give under"
            f" process '{process}'"
        )
        assert reason == (None if objective == "diffusion" else refused)


def test_json_is_the_only_thing_on_stdout(scm):
    for arguments in (("list",), ("list", "--matrix"), ("show", "data/digits"), ("plugins",), ("doctor",)):
        result = scm(*arguments, "--json")
        assert result.out.count("\n") == 1
        json.loads(result.out)


def test_a_name_without_its_kind_is_told_with_it(scm):
    result = scm("show", "scd")
    assert result.code == 2
    assert "write KIND/NAME, such as objective/scd" in result.err
    assert "such as weighting/uniform or proposal/uniform" in scm("show", "uniform").err
