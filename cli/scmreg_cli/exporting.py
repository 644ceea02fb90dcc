"""The commands that give a run away: cite, export; and the one that takes weights in."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from scmreg import run as runs
from scmreg.cite import cite as cited
from scmreg.errors import OptionError
from scmreg.export import export as exported
from scmreg.importing import check_import, import_weights
from scmreg.sample import Weights, load_run
from scmreg_cli.running import choose_sampler, compose
from scmreg_cli.showing import console, table

__all__ = ["cite", "export", "import_"]


def cite(run: Path, *, as_json: bool) -> None:
    """Print the BibTeX of what a run used; say on stderr which references have none."""
    found = cited(run)
    if as_json:
        print(json.dumps({"run": str(run), **found.to_json()}))
        return
    print("\n\n".join(found.entries.values()))
    for reference, components in found.without.items():
        print(f"no BibTeX entry is known of '{reference}' ({', '.join(components)})", file=sys.stderr)


def export(
    run: Path,
    to: Path,
    *,
    form: str,
    sampler: str | None,
    steps: int | None,
    times: str | None,
    guidance: float | None,
    weights: str,
    settings: Sequence[str],
    as_json: bool,
) -> None:
    """Write a run as a folder that needs no scmreg, and print where it is."""
    if weights not in ("ema", "raw"):
        raise OptionError([f"--weights {weights}: must be ema (averaged) or raw"])
    opened = load_run(run)
    drawn_by = choose_sampler(opened, sampler, steps, times, guidance, settings)
    made = exported(opened, to, format=form, sampler=drawn_by, weights=cast("Weights", weights))
    if as_json:
        print(json.dumps(made.to_json()))
        return
    print(made.folder)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)


def import_(
    source: Path,
    chosen: Mapping[str, Any],
    settings: Sequence[str],
    *,
    recipe: str | None,
    name: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Keep weights as a run, and print how well they predict."""
    # No step is taken here, and one is the least that a recipe can say.
    made = compose(recipe, {"objective": "diffusion", **chosen, "trainer.steps": 1}, settings)
    dataset = runs.prepare(made)
    check_import(made, dataset, source)
    kept = import_weights(made, dataset, source, runs.open_folder(made, out or Path("runs"), name))
    for note in kept.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(kept.to_json()))
        return
    shown = table("noise over data", "error of the model", "of a linear function")
    for level, (model, linear) in kept.errors.items():
        shown.add_row(f"{level:g}", f"{model:.4g}", f"{linear:.4g}")
    console().print(shown)
    print(kept.folder)
