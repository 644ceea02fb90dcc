"""The file that the page docs/how-to/diffusers.md shows."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "diffusers.md"


def write(folder: Path) -> Path:
    """Write the file into a folder."""
    found = re.search(r'^```python title="unet.py"\n(.*?)^```$', PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, "the page shows no unet.py"
    file = folder / "unet.py"
    file.write_text(found[1], encoding="utf-8")
    return file


def load(folder: Path) -> ModuleType:
    """Write the file and import it, under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location("unet_of_the_page", write(folder))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
