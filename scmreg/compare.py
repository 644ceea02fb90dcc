"""Runs side by side: where their recipes differ, and their figures, as far as those can be compared.

Figures mean the same only where runs were trained on the same data and judged in the same way. Runs are put into groups
of which that is true, and nothing is compared across groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scmreg.errors import OptionError, RunError
from scmreg.recipe import Trainer
from scmreg.record import Record, figures_of, name_of, read_record, rows, title_of

__all__ = ["Comparison", "Difference", "Group", "Row", "compare"]

JUDGED_BY = ("metrics", "count", "seed")
"""Options of the evaluation that figures depend on."""


@dataclass(frozen=True)
class Difference:
    """A place of the recipes where not all say the same."""

    path: str
    """Where, as ``--set`` would name it."""
    values: Mapping[str, Any]
    """What each run says; a run is missing where its recipe has no such option."""
    operational: bool
    """Whether it leaves the result alone, such as the device."""


@dataclass(frozen=True)
class Row:
    """One figure of one kind of model."""

    figure: str
    model: str
    """``real data``, ``teacher`` or ``model``."""
    evaluations: int | None
    """Evaluations of the network per sample; ``None`` for real data."""
    values: Mapping[str, float]
    """The figure of each run that has it."""

    @property
    def title(self) -> str:
        """Say which model it is of."""
        if self.evaluations is None:
            return f"{self.model}, two halves"
        return f"{self.model}, {self.evaluations} evaluation{'s' * (self.evaluations != 1)}"


@dataclass(frozen=True)
class Group:
    """Runs whose figures mean the same."""

    runs: tuple[str, ...]
    data: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    records: Mapping[str, Record]
    """The runs by the names that they have here: those of their folders, or the paths where names are alike."""
    differences: tuple[Difference, ...]
    groups: tuple[Group, ...]
    reasons: tuple[str, ...]
    """Why there is more than one group."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": {name: str(record.folder) for name, record in self.records.items()},
            "differences": [
                {"path": each.path, "values": dict(each.values), "operational": each.operational}
                for each in self.differences
            ],
            "comparable": len(self.groups) == 1,
            "reasons": list(self.reasons),
            "groups": [
                {
                    "runs": list(group.runs),
                    "data": group.data,
                    "figures": [
                        {
                            "figure": row.figure,
                            "model": row.model,
                            "evaluations": row.evaluations,
                            "values": dict(row.values),
                        }
                        for row in group.rows
                    ],
                }
                for group in self.groups
            ],
        }


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Read runs and put them side by side.

    Args:
        paths: two run directories or more, all of them judged.

    Raises:
        OptionError: if there are fewer than two, or one is named twice.
        RunError: if one is no run directory, cannot be read, or has not been judged.
    """
    if len(paths) < 2:
        raise OptionError(["there is nothing to compare: name two runs or more"])
    places = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise OptionError([f"{path} is named twice"], "name two different runs or more")
    read = [read_record(path) for path in paths]
    for record in read:
        if record.summary is None:
            raise RunError(
                f"{record.folder} has not been judged: it has no summary.json",
                f"finish it: scm run --resume {record.folder}",
            )
    names = [record.name for record in read]
    records = {record.name if names.count(record.name) == 1 else str(record.folder): record for record in read}
    keys = {name: (_data(record), _judged(record)) for name, record in records.items()}
    groups = []
    for key in dict.fromkeys(keys.values()):
        members = tuple(name for name in records if keys[name] == key)
        data = name_of(records[members[0]].recipe["data"])
        groups.append(Group(members, data, _rows({name: records[name] for name in members})))
    differences = _differences(records)
    return Comparison(records, differences, tuple(groups), _reasons(records, keys, differences))


def _rows(records: Mapping[str, Record]) -> tuple[Row, ...]:
    found: dict[tuple[str, str, int | None], dict[str, float]] = {}
    figures: dict[str, None] = {}
    for name, record in records.items():
        assert record.summary is not None, "runs that were not judged were refused"
        results = rows(record.summary)
        figures |= dict.fromkeys(figures_of(results))
        for title, entry in results:
            model = "teacher" if title == "teacher" else "model" if "nfe" in entry else "real data"
            for figure, value in entry.items():
                if figure != "nfe":
                    found.setdefault((figure, model, entry.get("nfe")), {})[name] = value
    order = {figure: index for index, figure in enumerate(figures)}
    models = ("real data", "teacher", "model")
    keys = sorted(found, key=lambda key: (order[key[0]], models.index(key[1]), key[2] or 0))
    return tuple(Row(*key, found[key]) for key in keys)


def _differences(records: Mapping[str, Record]) -> tuple[Difference, ...]:
    flat = {name: dict(_flat(record.recipe)) for name, record in records.items()}
    paths = dict.fromkeys(path for tree in flat.values() for path in tree)
    found = []
    for path in paths:
        values = {name: tree[path] for name, tree in flat.items() if path in tree}
        if len(values) == len(records) and len({_text(value) for value in values.values()}) == 1:
            continue
        section, _, option = path.rpartition(".")
        operational = section in ("trainer", "teacher.trainer") and option in Trainer.operational
        found.append(Difference(path, values, operational))
    return tuple(found)


def _flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a recipe by path; a component stands at its own path by name, as ``--set`` takes it.

    A sum is called after its terms. A list of components is one of names, and each has its options under its name.
    """
    for key, value in node.items():
        here = f"{path}.{key}" if path else str(key)
        if key == "name" and path:
            yield path, title_of(node)
        elif isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            if key != "terms":
                yield here, [name_of(item) for item in value]
            for item in value:
                options = {option: given for option, given in item.items() if option != "name"}
                yield from _flat(options, f"{here}.{name_of(item)}")
        else:
            yield here, value


def _data(record: Record) -> str:
    """Return what tells data from other data: the digest of their content, or what the recipe says of them."""
    digest = (record.meta or {}).get("data_digest")
    return str(digest) if digest else _text(record.recipe["data"])


def _judged(record: Record) -> str:
    evaluation = record.recipe.get("evaluation") or {}
    return _text({option: evaluation.get(option) for option in JUDGED_BY})


def _reasons(
    records: Mapping[str, Record], keys: Mapping[str, tuple[str, str]], differences: Sequence[Difference]
) -> tuple[str, ...]:
    """Say why figures of some runs cannot be compared with those of others."""
    found = []
    if len({data for data, _ in keys.values()}) > 1:
        said = [f"{name} on {name_of(record.recipe['data'])}" for name, record in records.items()]
        same = not any(each.path.partition(".")[0] == "data" for each in differences)
        more = " (the recipes name the same data, but their content differs)" if same else ""
        found.append(f"the runs were trained on different data: {', '.join(said)}{more}")
    if len({judged for _, judged in keys.values()}) > 1:
        options = [f"evaluation.{option}" for option in JUDGED_BY]
        named = dict.fromkeys(option for each in differences for option in options if each.path.startswith(option))
        found.append(f"the runs were judged in different ways: {', '.join(named)} differ{'s' * (len(named) == 1)}")
    return tuple(found)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
