"""The report of a run: one HTML page that needs no network, no script and nothing beside it.

It is made of what the run directory says (:mod:`scmreg.record`), for unfinished runs and for diffusion models too; the
model is not computed again.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from scmreg import __version__, checkpoint
from scmreg.charts import curve, data_uri, heat_map, number
from scmreg.component import Component
from scmreg.errors import OutputError, RunError
from scmreg.record import Record, figures_of, name_of, read_record, rows, title_of
from scmreg.registry import registry

__all__ = ["Report", "make_report", "page", "write_report"]

MARK = '<meta name="generator" content="scmreg report">'
"""Tells a report from any other file."""
SHOWN = 12
"""Pictures through training that are shown at most."""

FIGURES: dict[str, tuple[str, str]] = {
    "loss": ("Loss", "mean over the samples in the bin, before its weight"),
    "weight": ("Weight", "the factor that the loss of a sample is multiplied with"),
    "tangent_norm": ("Tangent", "‖g‖ with warm-up, before normalization; g = cos t̂ · df/dt̂"),
    "tangent_space_norm": ("Tangent, part in space", "‖cos t̂ · ∇f · dx̂/dt̂‖, without warm-up"),
    "tangent_time_norm": ("Tangent, part in time", "‖cos t̂ · ∂f/∂t̂‖, without warm-up"),
    "target_norm": ("Target", "norm of what the velocity of the network is regressed onto"),
    "count": ("Samples", "training samples in the bin between two lines of the log"),
    "nonfinite": ("Not finite", "samples with a figure that is not finite"),
}
"""Titles and meanings of figures per bin, in the order in which they are shown; others follow by name."""
CURVES = {"loss": "Loss that is minimised", "gradient_norm": "Norm of the gradient", "learning_rate": "Learning rate"}
PARTS = ("process", "parameterization", "network", "objective", "weighting", "proposal", "data", "sampler", "teacher")
"""What the summary of the recipe shows, in order."""


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    path: Path
    record: Record
    heat_maps: tuple[str, ...]
    """Names of the figures that it has maps of, with their phase where there are several."""

    def to_json(self) -> dict[str, Any]:
        """Return where it is and what it tells, as plain values."""
        summary = self.record.summary or {}
        return {
            "report": str(self.path),
            "run": str(self.record.folder),
            "step": self.record.step,
            "steps": self.record.steps,
            "heat_maps": list(self.heat_maps),
            "figures": {key: summary[key] for key in ("floor", "teacher", "student") if key in summary} or None,
        }


def make_report(run: str | Path, output: Path | None = None) -> Report:
    """Write the report of a run.

    Args:
        run: run directory.
        output: file to write; ``report.html`` in the run directory if not given. An older report is replaced.

    Raises:
        RunError: if it is no run directory, or cannot be read.
        OutputError: if the file is something else than a report, or cannot be written.
    """
    record = read_record(run)
    path = record.folder / "report.html" if output is None else output
    write_report(path, page(record))
    return Report(path, record, tuple(label for label, *_ in maps(record)))


def write_report(path: Path, text: str) -> None:
    """Write a page, over an older report but over nothing else.

    Raises:
        OutputError: if it cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name a file, such as report.html")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent}", "make it first, or choose another --output")
    if path.exists():
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                ours = MARK in file.read(2000)
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror or error}") from None
        if not ours:
            raise OutputError(f"{path} exists already, and is no report", "choose another --output")
    checkpoint.write_text(path, text)


def page(record: Record) -> str:
    """Return the report of a run as HTML."""
    style = (resources.files("scmreg") / "report.css").read_text(encoding="utf-8")
    sections = (results, samples, curves, bins, through_training, recipe, environment)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            MARK,
            # The page asks for nothing, and a browser would not let it.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
            " style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(record.name)} · scmreg</title>",
            f'<link rel="icon" href="{data_uri(ICON.encode(), "svg+xml")}">',
            f"<style>{style}</style></head><body>",
            top(record),
            "<main>",
            *(made for section in sections if (made := section(record))),
            "</main>",
            f"<footer>Made by scmreg {escape(__version__)} from {escape(str(record.folder))}, step {record.step} of"
            f" {record.steps}.</footer>",
            "</body></html>",
            "",
        ]
    )


ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#1f3a5f"/>'
    '<path d="M3 8c2-6 4-6 5 0s3 6 5 0" fill="none" stroke="#fff" stroke-width="1.8"/></svg>'
)


# Sections -----------------------------------------------------------------------------------------------------------


def top(record: Record) -> str:
    """Return the head of the page: name, state, what it is, and the figures that matter first."""
    objective, state = _known("objective", record), "finished" if record.finished else "unfinished"
    pill = f'<span class="pill{"" if record.finished else " going"}">{state}</span>'
    lines = [
        "<header>",
        f'<p class="over">Run · {_names(record)}</p>',
        f"<h1>{escape(record.name)}{pill}</h1>",
    ]
    if objective is not None:
        lines.append(f'<p class="lead">{escape(_plain(objective.summary()))}</p>')
        lines.append(f'<p class="formula">{escape(objective.formula)}</p>' if objective.formula else "")
    tiles = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for label, value, more in _tiles(record)
    )
    return "\n".join([*lines, f'<dl class="tiles">{tiles}</dl>', "</header>"])


def results(record: Record) -> str:
    """Return the table of the evaluation."""
    if record.summary is None:
        state = "" if record.finished else f" It is at step {record.step} of {record.steps}."
        return _section(
            "Results",
            f'<p class="note">This run has not been judged.{state} <code>scm run --resume {escape(str(record.folder))}'
            "</code> does what is left.</p>",
        )
    found = rows(record.summary)
    names = figures_of(found)
    if not names:
        return _section("Results", '<p class="note">No metric applied to these data.</p>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ("model", "evaluations", *names))
    body = []
    for title, entry in found:
        cells = [title, str(entry.get("nfe", "")), *(number(entry[n]) if n in entry else "" for n in names)]
        style = "" if "nfe" in entry else ' class="floor"'
        body.append(f"<tr{style}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    table = (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_meaning(name), []).append(name)
    meant = [(", ".join(group), escape(text)) for text, group in alike.items() if text]
    return _section("Results", table + (_facts(meant) if meant else ""))


def samples(record: Record) -> str:
    """Return the pictures of the evaluation: teacher and student from the same noise."""
    folder = record.folder / "samples"
    found = _panels(record)
    if found:
        figures = [
            _picture(path, title, f"Samples of the {title}", small=more)
            for path, title, more in found
            if path.is_file()
        ]
        same = (
            "The image at the same place is of the same noise and the same class in every panel."
            if len(figures) > 1
            else ""
        )
        return _section("Samples", f'<p class="note">{same}</p>' + _grid("pictures", figures))
    path = folder / "comparison.png"
    if path.is_file():
        figure = _picture(path, "Teacher and student", "Scatter plots of the data and of samples of every model")
        return _section("Samples", _grid("pictures wide", [figure]))
    return ""


def curves(record: Record) -> str:
    """Return a curve for every figure of ``metrics.jsonl``."""
    if not record.metrics:
        return _section("Training", '<p class="note">Nothing is logged yet.</p>')
    steps = [line["step"] for line in record.metrics]
    names = list(dict.fromkeys(key for line in record.metrics for key in line if key not in ("step", "seconds")))
    names.sort(key=lambda name: list(CURVES).index(name) if name in CURVES else len(CURVES))
    figures = []
    for name in names:
        values = [line.get(name) for line in record.metrics]
        known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
        if not known:
            continue
        title = CURVES.get(name) or FIGURES.get(name, (_words(name), ""))[0]
        chart = curve(steps, values, name=title, last=record.step, linear="learning_rate" in name)
        figures.append(
            f'<figure><figcaption><span class="now">{number(float(known[-1]))}</span>{escape(title)}</figcaption>'
            f"{chart}</figure>"
        )
    words = "Each value is the mean over the batch of that step (faint) and the running mean of them (strong)."
    return _section("Training", f'<p class="note">{words}</p>' + _grid("curves", figures))


def bins(record: Record) -> str:
    """Return a map of time bins over training for every figure of ``bins.jsonl``."""
    found = maps(record)
    if not found:
        return ""
    several = len({phase for _, phase, *_ in found}) > 1
    parts = [
        '<p class="note">TrigFlow time t̂ runs from clean data (0) to pure noise (π/2), whatever the process. Every'
        " training sample is counted in its bin. The curve beside a map is the mean over the first tenth (faint) and"
        " the last tenth (strong) of the log; its axis is the scale of the colours. Where a map is empty, no time was"
        " drawn.</p>"
    ]
    for phase in dict.fromkeys(phase for _, phase, *_ in found):
        figures = []
        for label, of, name, steps, values in found:
            if of != phase:
                continue
            title, meaning = FIGURES.get(name, (_words(name), ""))
            small = f"<small>{escape(meaning)}</small>" if meaning else ""
            figures.append(
                f'<figure class="map" data-figure="{escape(label)}"><figcaption>{escape(title)}{small}</figcaption>'
                f"{heat_map(steps, values, name=title)}</figure>"
            )
        parts += [f"<h3>Phase {escape(phase)}</h3>"] if several else []
        parts.append(_grid("maps", figures))
    return _section("By time", "".join(parts))


Values = Sequence[Sequence[float | None]]


def maps(record: Record) -> list[tuple[str, str, str, list[int], Values]]:
    """Return what there are maps of: label, phase, name of the figure, steps, and values per step and bin.

    Raises:
        RunError: if ``bins.jsonl`` is not what training writes.
    """
    try:
        return _maps(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{record.folder / 'bins.jsonl'} cannot be read: {error!r}") from None


def _maps(record: Record) -> list[tuple[str, str, str, list[int], Values]]:
    found: list[tuple[str, str, str, list[int], Values]] = []
    phases = list(dict.fromkeys(str(line["phase"]) for line in record.bins))
    for phase in phases:
        lines = [line for line in record.bins if line["phase"] == phase]
        size = len(lines[-1]["count"])
        lines = [line for line in lines if len(line["count"]) == size]
        steps = [line["step"] for line in lines]
        names = dict.fromkeys(name for line in lines for name in line["figures"])
        ordered = [name for name in FIGURES if name in names] + [name for name in names if name not in FIGURES]
        chosen = {name: [line["figures"].get(name, [None] * size) for line in lines] for name in ordered}
        chosen["count"] = [[count or None for count in line["count"]] for line in lines]
        if any(any(line["nonfinite"]) for line in lines):
            chosen["nonfinite"] = [[count or None for count in line["nonfinite"]] for line in lines]
        prefix = f"{phase}/" if len(phases) > 1 else ""
        found += [(f"{prefix}{name}", phase, name, steps, values) for name, values in chosen.items()]
    return found


def through_training(record: Record) -> str:
    """Return samples of the same seeds at several steps."""
    if not record.previews:
        return ""
    steps = list(record.previews)
    if len(steps) > SHOWN:
        steps = [steps[round(i * (len(steps) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    figures = [
        _picture(record.previews[step], f"Step {step}", f"Samples of the averaged model at step {step}")
        for step in steps
    ]
    words = "The averaged model at checkpoints; the sample at the same place is of the same noise."
    style = "through" if _modality(record) == "image" else "through points"
    return _section("Samples through training", f'<p class="note">{words}</p>' + _grid(style, figures))


def recipe(record: Record) -> str:
    """Return the recipe: its parts with their options, and the whole of it."""
    parts = [(name, _part(node)) for name in PARTS if (node := _node(record, name)) is not None]
    text = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
    marked = "\n".join(
        f"<b>{escape(key)}</b>{escape(colon + rest)}" if colon and key and key[0] not in " -" else escape(line)
        for line in text.splitlines()
        for key, colon, rest in [line.partition(":")]
    )
    return _section("Recipe", _facts(parts) + f"<pre>{marked}</pre>")


def environment(record: Record) -> str:
    """Return what the run was trained on."""
    if record.meta is None:
        return _section("Environment", '<p class="note">It is written with the first checkpoint.</p>')
    found = dict(record.meta.get("environment") or {"scmreg": record.meta.get("scmreg", "unknown")})
    facts = [(str(name), escape(str(value))) for name, value in found.items()]
    facts.append(("time of training", escape(_duration(float(record.meta.get("seconds", 0))))))
    if record.summary:
        facts.append(("time of the whole command", escape(_duration(float(record.summary["seconds"])))))
    teacher = record.meta.get("teacher")
    if isinstance(teacher, Mapping):
        facts.append(("teacher", f"<code>{escape(str(teacher.get('run') or teacher.get('source')))}</code>"))
    return _section("Environment", _facts(facts))


# What they are made of ------------------------------------------------------------------------------------------------


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _grid(style: str, figures: Iterable[str]) -> str:
    return f'<div class="grid {style}">{"".join(figures)}</div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and what they are; the latter is HTML."""
    return '<dl class="facts">' + "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in facts) + "</dl>"


def _picture(path: Path, title: str, alternative: str, small: str = "") -> str:
    try:
        source = data_uri(path.read_bytes(), "png")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    more = f"<small>{escape(small)}</small>" if small else ""
    return (
        f"<figure><figcaption>{escape(title)}{more}</figcaption>"
        f'<img src="{source}" alt="{escape(alternative)}"></figure>'
    )


def _panels(record: Record) -> list[tuple[Path, str, str]]:
    """Return the pictures of single models where they can be laid beside each other: file, title, figures."""
    if record.summary is None or _modality(record) != "image":
        return []
    folder, found = record.folder / "samples", []
    if teacher := record.summary.get("teacher"):
        few = bool(record.summary["student"])
        found.append((folder / ("teacher.png" if few else "model.png"), "teacher" if few else "model", teacher))
    # Pictures are named by steps, of which each may take several evaluations.
    for steps, entry in zip(record.recipe["evaluation"]["steps"], record.summary["student"], strict=False):
        words = f"{steps} step{'s' * (steps > 1)}"
        found.append((folder / f"{words.replace(' ', '-')}.png", words, entry))
    return [
        (path, title, f"{entry['nfe']} evaluation{'s' * (entry['nfe'] > 1)}" + _first_figure(entry))
        for path, title, entry in found
        if path.is_file()
    ]


def _first_figure(entry: Mapping[str, Any]) -> str:
    name = next((key for key in entry if key != "nfe"), None)
    return f", {name} {number(entry[name])}" if name else ""


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """Return the figures of the head of the page: label, value, and what more there is to say."""
    share = f"of {record.steps}" if not record.finished else "all that were asked for"
    tiles = [("Steps", f"{record.step}", share)]
    if record.meta is not None:
        each = record.meta.get("step_seconds")
        tiles.append(
            (
                "Training",
                _duration(float(record.meta.get("seconds", 0))),
                f"{1000 * each:.3g} ms a step" if each else "",
            )
        )
    if record.summary:
        found = [(title, entry) for title, entry in rows(record.summary) if "nfe" in entry]
        name = next(iter(figures_of(rows(record.summary))), "")
        floor = record.summary.get("floor", {}).get(name)
        for title, entry in found:
            if name in entry:
                more = "" if floor is None else f"real data {number(floor)}"
                count = f"{entry['nfe']} evaluation{'s' * (entry['nfe'] > 1)}"
                label = f"{name}, teacher" if title == "teacher" else f"{name}, {count}"
                tiles.append((label, number(entry[name]), count if title == "teacher" else more))
    elif record.metrics and "loss" in record.metrics[-1]:
        tiles.append(("Loss", number(float(record.metrics[-1]["loss"])), f"at step {record.metrics[-1]['step']}"))
    return tiles


def _names(record: Record) -> str:
    said = [title_of(record.recipe[name]) for name in ("objective", "data", "process")]
    seed = record.recipe.get("seed", 0)
    return escape(f"{said[0]} on {said[1]} under {said[2]}, seed {seed}")


def _modality(record: Record) -> str:
    data = (record.meta or {}).get("data") or {}
    return str(data.get("modality", "image"))


def _node(record: Record, name: str) -> Any:
    """Return a part of the recipe by the name of its kind."""
    objective = record.recipe["objective"]
    if name in ("weighting", "proposal"):
        return objective.get(name) if isinstance(objective, Mapping) else None
    if name != "teacher":
        return record.recipe.get(name)
    known = _known("objective", record)
    if known is not None and record.meta is not None and record.meta.get("teacher") is None:
        return None  # it had none: the section is not used
    teacher = record.recipe.get("teacher")
    return {"name": teacher.get("source")} if isinstance(teacher, Mapping) else None


def _part(node: Any) -> str:
    """Return a component of the recipe as HTML: its name and its plain options; of a sum those of its terms too."""
    if not isinstance(node, Mapping):
        return f"<b>{escape(str(node))}</b>"
    plain = [
        f"{key} {yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}"
        for key, value in node.items()
        if key not in ("name", "terms") and not isinstance(value, Mapping)
    ]
    options = f' <span class="options">{escape(", ".join(plain))}</span>' if plain else ""
    terms = "".join(f"<br>{_part(term)}" for term in node.get("terms") or ())
    return f"<b>{escape(title_of(node))}</b>{options}{terms}"


def _known(kind: str, record: Record) -> type[Component] | None:
    """Return the class of a component of the recipe, if it is installed here."""
    found: type[Component] | None = dict(registry(kind)).get(name_of(record.recipe[kind]))
    return found


@functools.cache
def _meaning(figure: str) -> str:
    """Say what a figure of the evaluation is, in the words of the metric that gives it."""
    for metric in registry("metric").values():
        if figure in metric.figures:
            return _plain((inspect.getdoc(metric) or "").partition("\n")[0])
    return ""


def _plain(text: str) -> str:
    return text.replace("`", "")


def _words(name: str) -> str:
    """Return the name of a figure as a title."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.3g} min" if minutes < 120 else f"{hours:.3g} h"
