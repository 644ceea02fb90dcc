"""`scm report`: one page that holds everything, for finished and unfinished runs, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scmreg.charts import Scale, curve, heat_map, number
from scmreg.report import FIGURES

VOID = {"meta", "link", "img", "br"}
MAPS = ["loss", "weight", "tangent_norm", "tangent_space_norm", "tangent_time_norm", "target_norm", "count"]


class Page(HTMLParser):
    """The tags of a page with their attributes; complains where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def maps(self):
        return [figure["data-figure"] for figure in self.all("figure") if "data-figure" in figure]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, with its teacher."""
    shutil.copytree(trained[0].parent, tmp_path / "runs")
    return tmp_path / "runs" / trained[0].name


def report(scm, run, *arguments):
    result = scm("report", run, *arguments)
    assert result.code == 0, result.err
    return Page(Path(result.out.strip()).read_text(encoding="utf-8"))


def check_nothing_external(page: Page) -> None:
    """Every reference is a data URI, and a browser is told to allow nothing else."""
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "video", "audio", "source")
        for name, value in attributes.items():
            assert not name.startswith("on"), "a script"
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data", "background"):
                assert value.startswith("data:image/"), f"{tag} {name}={value[:60]}"
            assert "url(" not in (value or "")
    style = " ".join(page.words)
    assert "@import" not in style
    assert "url(" not in style
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_page_holds_everything(scm, run):
    page = report(scm, run)
    check_nothing_external(page)
    assert page.maps() == MAPS
    for name in MAPS:
        assert FIGURES[name][0] in page.text
    for title in ("Results", "Samples", "Training", "By time", "Samples through training", "Recipe", "Environment"):
        assert f" {title} " in page.text
    assert "finished" in page.text
    summary = json.loads((run / "summary.json").read_text())
    for entry in (summary["teacher"], *summary["student"]):
        assert number(entry["frechet"]) in page.text
    for line in (run / "recipe.yaml").read_text().splitlines():
        assert " ".join(line.replace(":", " :").split()) in page.text.replace(":", " :").replace("  ", " ")
    meta = json.loads((run / "checkpoints" / "00000003" / "meta.json").read_text())
    assert {"torch", "python", "device", "threads", "platform"} <= set(meta["environment"])
    for name, value in meta["environment"].items():
        assert name in page.text
        assert value in page.text


def test_pictures_are_there_and_described(scm, run):
    page = report(scm, run)
    pictures = page.all("img")
    # Teacher, 1, 2 and 4 steps, and one through training.
    assert [picture["alt"] for picture in pictures] == [
        "Samples of the teacher", "Samples of the 1 step", "Samples of the 2 steps", "Samples of the 4 steps",
        "Samples of the averaged model at step 3",
    ]  # fmt: skip
    files = ["teacher.png", "1-step.png", "2-steps.png", "4-steps.png", "training/00000003.png"]
    for picture, file in zip(pictures, files, strict=True):
        kind, _, content = picture["src"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content) == (run / "samples" / file).read_bytes()
    for drawing in page.all("svg"):
        assert len(drawing["aria-label"]) > 20
        assert drawing["role"] == "img"
    curves = {drawing["aria-label"].partition(" over training")[0] for drawing in page.all("svg")}
    assert {"Loss that is minimised", "Norm of the gradient", "Learning rate", "Tangent"} <= curves


def test_steps_of_several_evaluations(scm, run):
    summary = json.loads((run / "summary.json").read_text())
    for entry, count in zip(summary["student"], (1, 3, 7), strict=True):
        entry["nfe"] = count
    (run / "summary.json").write_text(json.dumps(summary))
    page = report(scm, run)
    assert len(page.all("img")) == 5
    assert f"4 steps 7 evaluations, frechet {number(summary['student'][2]['frechet'])}" in page.text


def test_json_and_another_place(scm, run, tmp_path):
    place = tmp_path / "page.html"
    result = scm("report", run, "--output", place, "--json")
    assert result.code == 0, result.err
    assert result.json["report"] == str(place)
    assert (result.json["run"], result.json["step"], result.json["steps"]) == (str(run), 3, 3)
    assert result.json["heat_maps"] == MAPS
    summary = json.loads((run / "summary.json").read_text())
    assert result.json["figures"] == {key: summary[key] for key in ("floor", "teacher", "student")}
    assert not (run / "report.html").exists()
    before = place.read_text()
    assert scm("report", run, "--output", place).out == f"{place}\n", "a report is replaced by a newer one"
    assert place.read_text() == before, "it tells nothing but the run"


def test_a_sum_is_called_after_its_terms(scm, run):
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["objective"] = {
        "name": "sum",
        "terms": [tree["objective"], {"name": "vsd", "fake_rate": 7.5}],
        "weights": [1, 2],
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    page = report(scm, run)
    assert "Run · scd+vsd on digits under trigflow, seed 0" in page.text
    assert "scd+vsd weights [1, 2]" in page.text
    assert "vsd fake_rate 7.5" in page.text


def test_a_teacher_has_one_too(scm, run):
    teacher = next(path for path in (run.parent / "teachers").iterdir() if path.is_dir())
    page = report(scm, teacher)
    check_nothing_external(page)
    assert page.maps() == ["loss", "weight", "target_norm", "count"]
    assert "has not been judged" in page.text
    assert "Samples of the averaged model at step 3" in [picture["alt"] for picture in page.all("img")]


def test_points(scm, trained_points, tmp_path):
    shutil.copytree(trained_points[0].parent, tmp_path / "runs")
    page = report(scm, tmp_path / "runs" / trained_points[0].name)
    check_nothing_external(page)
    assert page.maps() == MAPS
    assert len(page.all("img")) == 2
    assert "sliced_wasserstein" in page.text


def test_an_unfinished_run(scm, run):
    """What is not there is said to be missing; what is there is shown."""
    (run / "summary.json").unlink()
    tree = (run / "recipe.yaml").read_text().replace("  steps: 3\n", "  steps: 5\n", 1)
    (run / "recipe.yaml").write_text(tree)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    page = report(scm, run)
    assert "unfinished" in page.text
    assert "It is at step 3 of 5" in page.text
    assert f"scm run --resume {run}" in page.text
    assert page.maps() == MAPS
    for name in ("checkpoints", "samples"):
        shutil.rmtree(run / name)
    for name in ("metrics.jsonl", "bins.jsonl"):
        (run / name).unlink()
    page = report(scm, run)
    check_nothing_external(page)
    assert "Nothing is logged yet" in page.text
    assert page.maps() == []
    assert scm("report", run, "--json").json["figures"] is None


def test_figures_of_other_objectives(scm, run):
    """Names are free, phases have maps of their own, what is empty or not finite is shown as such; markup is text."""
    lines = [
        {"step": step, "phase": phase, "count": [3, 0, 1], "nonfinite": [0, 0, int(phase == "fake")],
         "figures": {"loss": [0.1 * step, None, 2.0], name: [-1.0, None, None]}}
        for step in (1, 2, 3) for phase, name in (("main", "<b>odd</b>"), ("fake", "score_norm"))
    ]  # fmt: skip
    (run / "bins.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(scm, run)
    assert page.maps() == [
        "main/loss", "main/<b>odd</b>", "main/count", "fake/loss", "fake/score_norm", "fake/count", "fake/nonfinite",
    ]  # fmt: skip
    for words in ("Phase main", "Phase fake", "Score norm", "<b>odd</b>", "Not finite"):
        assert words in page.text
    check_nothing_external(page)


def test_a_component_that_is_not_installed(scm, run):
    """The page needs no plugin of the run."""
    text = (run / "recipe.yaml").read_text().replace("name: scd", "name: gone")
    (run / "recipe.yaml").write_text(text)
    page = report(scm, run)
    assert "gone on digits under trigflow" in page.text


@pytest.fixture
def refused(scm):
    def refuse(*arguments, words):
        result = scm("report", *arguments)
        assert result.code == 2, result.err
        assert result.out == ""
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) <= 4
        for word in words:
            assert word in result.err
        return result

    return refuse


def test_what_is_refused(refused, run, tmp_path):
    refused(tmp_path / "nowhere", words=["does not exist", "runs/"])
    refused(run / "recipe.yaml", words=["is a file, not a run directory"])
    refused(tmp_path, words=["is no run directory", "recipe.yaml"])
    refused(run, "--output", tmp_path / "no" / "page.html", words=["there is no folder", "--output"])
    refused(run, "--output", tmp_path, words=["is a folder"])
    (tmp_path / "mine.html").write_text("<p>precious</p>")
    refused(run, "--output", tmp_path / "mine.html", words=["exists already, and is no report"])
    assert (tmp_path / "mine.html").read_text() == "<p>precious</p>"
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("recipe.yaml", "a: [", ["recipe", "no YAML"]),
        ("recipe.yaml", "seed: 3\n", ["not whole"]),
        ("summary.json", "{", ["summary.json cannot be read"]),
        ("summary.json", "[]", ["summary.json cannot be read"]),
        ("metrics.jsonl", 'nonsense\n{"step": 3}\n', ["metrics.jsonl cannot be read: line 1"]),
        ("bins.jsonl", '{"loss": 3}\n{"step": 3}\n', ["bins.jsonl cannot be read: line 1"]),
        ("bins.jsonl", '{"step": 3, "phase": "main"}\n', ["bins.jsonl cannot be read"]),
        ("bins.jsonl", b"\xff\xfe\n\n", ["bins.jsonl cannot be read"]),
        ("checkpoints/00000003/meta.json", "{}", ["meta.json cannot be read"]),
    ],
)
def test_files_that_cannot_be_read(refused, run, file, content, words):
    if isinstance(content, bytes):
        (run / file).write_bytes(content)
    else:
        (run / file).write_text(content)
    refused(run, words=words)
    assert not (run / "report.html").exists()


# Charts -------------------------------------------------------------------------------------------------------------


def pixels(svg: str):
    """Return the map that a drawing holds, as an image."""
    root = ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    first = next(element for element in root.iter() if element.tag.endswith("image"))
    return Image.open(io.BytesIO(base64.b64decode(first.attrib["href"].partition(",")[2])))


def test_a_map_puts_noise_on_top_and_leaves_gaps_empty():
    drawn = pixels(heat_map([10, 20, 30], [[0.0, None, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], name="x"))
    assert drawn.size == (3, 3)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((2, 0)) != drawn.getpixel((0, 2))
    assert drawn.getpixel((0, 0))[:3] == (253, 231, 36), "the highest value, at the latest time, is the brightest"
    assert [drawn.getpixel((x, 1))[3] for x in range(3)] == [0, 255, 255]


def test_long_trainings_are_averaged():
    columns = [[float(i), 0.0] for i in range(10_000)]
    drawn = heat_map(range(1, 10_001), columns, name="x")
    assert pixels(drawn).size == (240, 2)
    assert len(drawn) < 20_000
    assert "steps 42 to 10000" in drawn
    line = curve(list(range(1, 10_001)), [float(i) for i in range(10_000)], name="x", last=10_000)
    assert len(line) < 12_000


@pytest.mark.parametrize("values", [[1.0], [None], [0.0, 0.0], [1.0, None, 3.0], [-1.0, 1e6], [1e-9, 1.0, 1e9]])
def test_every_curve_and_map_can_be_drawn(values):
    steps = list(range(1, len(values) + 1))
    for svg in (
        curve(steps, values, name="a <b>", last=len(steps)),
        heat_map(steps, [[v, v] for v in values], name="&"),
    ):
        ET.fromstring(svg)
        assert not re.search(r"\bnan\b|\binf\b", svg)


def test_scales():
    import numpy as np

    assert Scale.of(np.array([1.0, 2.0])) == Scale(1.0, 2.0)
    assert Scale.of(np.array([1.0, 100.0, np.nan])) == Scale(1.0, 100.0, log=True)
    assert Scale.of(np.array([0.0, 1.0, 100.0])) == Scale(1.0, 100.0, log=True)
    assert Scale.of(np.array([1.0, 100.0]), linear=True) == Scale(1.0, 100.0)
    assert Scale.of(np.array([3.0])) == Scale(1.5, 4.5)
    assert Scale(1.0, 100.0, log=True).place(np.array([0.0, 1.0, 10.0, 1e9])).tolist() == pytest.approx([0, 0, 0.5, 1])
    assert Scale(0.0, 10.0).ticks() == [0, 5, 10]
    assert Scale(1e-3, 1e3, log=True).ticks() == pytest.approx([1e-3, 1e-1, 1e1, 1e3])
    for scale in (
        Scale(0.3, 9.0, log=True),
        Scale(0.2, 0.23),
        Scale(-4.0, 1e7),
        Scale(0.99, 1.01),
        Scale(2.0, 41.0, log=True),
    ):
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 5
        assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_numbers():
    shown = {0.0: "0", 1.0: "1", 0.258091: "0.2581", 12345.6: "12346", 1e-5: "1e-5", 2.43e-10: "2.4e-10", 3e7: "3e7"}
    assert {value: number(value) for value in shown} == shown
