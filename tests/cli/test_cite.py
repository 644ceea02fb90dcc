"""`scm cite`: the literature of a run, and that every component's reference is in it."""

from __future__ import annotations

import re

import pytest
import yaml

import scmreg
from scmreg import registry
from scmreg.bibliography import ENTRIES, resolve, split
from scmreg.cite import cite

COMPONENTS = [cls for kind in registry.KINDS for cls in registry.registry(kind).values() if cls.reference]


def keys(bibtex: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),$", bibtex, re.MULTILINE)


@pytest.mark.parametrize("cls", COMPONENTS, ids=lambda cls: f"{cls.kind}/{cls.name}")
def test_every_reference_has_an_entry(cls):
    found, without = resolve(cls)
    assert found
    assert not without, "add an entry to scmreg/bibliography.py, or state it as the `bibtex` of the class"


def test_every_entry_is_used_and_found_in_one_way():
    cited = {key for cls in COMPONENTS for key in resolve(cls)[0]}
    assert {entry.key for entry in ENTRIES} == cited
    for names in ([entry.key for entry in ENTRIES], [x for e in ENTRIES for x in (*e.identifiers, *e.names)]):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_an_entry_is_bibtex(entry):
    text = entry.bibtex()
    assert keys(text) == [entry.key]
    assert text.isascii(), "accents are written as LaTeX does"
    assert text.count("{") == text.count("}")
    for name in ("title", "author", "year"):
        assert re.search(rf"^  {name} = \{{.+\}},$", text, re.MULTILINE)
    if entry.arxiv:
        # An identifier begins with year and month of the first version, and no paper is older than its year of print.
        assert 0 <= entry.year - (2000 + int(entry.arxiv[:2])) <= 1


def test_cite(scm, trained):
    result = scm("cite", trained[0])
    assert (result.code, result.err) == (0, "")
    found = keys(result.out)
    assert found[-1] == "scmreg"
    assert len(found) == len(set(found))
    assert found[0] == "lu2024scm", "the process comes first"
    assert {"alpaydin1998digits", "karras2022edm", "heusel2017ttur"} <= set(found)
    assert "geng2024ect" not in found
    assert f"Version {scmreg.__version__}" in result.out


def test_cite_as_json(scm, trained):
    told = scm("cite", trained[0], "--json").json
    assert told["run"] == str(trained[0])
    assert told["without"] == {}
    cited_by = {entry["key"]: entry["cited_by"] for entry in told["entries"]}
    assert cited_by["alpaydin1998digits"] == ["data/digits"]
    assert cited_by["lu2024scm"][0] == "process/trigflow"
    assert "objective/scd" in cited_by["lu2024scm"]
    assert cited_by["scmreg"] == []
    assert [entry["bibtex"] for entry in told["entries"]] == list(cite(trained[0]).entries.values())


def folder_of(tree, place):
    place.mkdir()
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return place


def test_a_run_without_a_checkpoint_its_teacher_and_its_attention(workplace):
    teacher = folder_of({"process": "vp", "objective": "diffusion"}, workplace / "teacher")
    network = {"name": "dit", "attention": "triton"}
    run = folder_of({"network": network, "teacher": {"source": str(teacher)}}, workplace / "student")
    assert "process/vp" in cite(run).cited_by["ho2020ddpm"]
    assert cite(run).cited_by["dao2023flashattention2"] == ["attention/triton"]
    exact = folder_of({"data": "mixture", "teacher": {"source": "exact"}}, workplace / "exact")
    assert "ho2020ddpm" not in cite(exact).entries


PLUGIN = '''
import scmreg
from scmreg_flow import Flow

class Mine(scmreg.Process, name="mine"):
    """Be flow."""
    reference = "Nobody 2020, arXiv:2001.00001; Lu & Song 2024 (sCM), Eq. 1; Unknown 1999"
    bibtex = ""
    t_max = 1 - 2**-24
    coefficients = Flow.coefficients

@scmreg.hookimpl
def scmreg_components():
    return [Mine]
'''
OWN = "@misc{nobody2020,\n  title = {One},\n}\n@book{unknown1999,\n  title = {Two},\n}"


def test_a_plugin_brings_its_own_entries(scm, workplace, registries):
    (workplace / "mine.py").write_text(PLUGIN)
    run = folder_of({"process": "mine"}, workplace / "run")
    result = scm("cite", run, "--plugin", "mine.py")
    assert result.code == 0
    assert "no BibTeX entry is known of 'Nobody 2020, arXiv:2001.00001' (process/mine)" in result.err
    assert "'Unknown 1999'" in result.err
    assert "lu2024scm" in keys(result.out)


def test_own_entries_answer_for_the_reference():
    class Brings(scmreg.Process):
        """Bring entries."""

        reference = "Nobody 2020, arXiv:2001.00001; Lu & Song 2024 (sCM), Eq. 1"
        bibtex = OWN

    found, without = resolve(Brings)
    assert list(found) == ["lu2024scm", "nobody2020", "unknown1999"]
    assert found["unknown1999"] == "@book{unknown1999,\n  title = {Two},\n}"
    assert not without
    with pytest.raises(ValueError, match="no BibTeX"):
        split("Lu and Song")


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_what_is_no_run_is_refused(scm, workplace, place):
    result = scm("cite", place)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
