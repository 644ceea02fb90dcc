"""What tests of plugins share."""

from __future__ import annotations

import pytest
from interpreter import work


@pytest.fixture(scope="session")
def interpreted(request: pytest.FixtureRequest) -> dict[str, str]:
    """What was wrong with each check that a test asks for by ``name``: Triton's interpreter runs them all at once."""
    asked = [item for item in request.session.items if "interpreted" in getattr(item, "fixturenames", ())]
    return dict(work("properties", [item.callspec.params["name"] for item in asked]))
