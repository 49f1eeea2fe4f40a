"""A pytest plugin: every Trio task gets a portal."""

from __future__ import annotations

import sys
from collections.abc import Generator

import portals
import pytest

portals.in_trio()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, bool | None, bool | None]:
    """Undo what a test does that imports Trio a second time.

    Which of the two Trios runs could not be told after that.
    """
    ours = {name: module for name, module in sys.modules.items() if name[:4] == "trio"}
    result = yield
    sys.modules.update(ours)
    return result
