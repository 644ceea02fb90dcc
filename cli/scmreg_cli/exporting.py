"""The commands that give a run away: cite, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from scmreg.cite import cite as cited
from scmreg.errors import OptionError
from scmreg.export import export as exported
from scmreg.sample import Weights, load_run
from scmreg_cli.running import choose_sampler

__all__ = ["cite", "export"]


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
