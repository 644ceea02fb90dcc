"""The commands that give a run away: cite."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scmreg.cite import cite as cited

__all__ = ["cite"]


def cite(run: Path, *, as_json: bool) -> None:
    """Print the BibTeX of what a run used; say on stderr which references have none."""
    found = cited(run)
    if as_json:
        print(json.dumps({"run": str(run), **found.to_json()}))
        return
    print("\n\n".join(found.entries.values()))
    for reference, components in found.without.items():
        print(f"no BibTeX entry is known of '{reference}' ({', '.join(components)})", file=sys.stderr)
