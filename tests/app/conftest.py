"""What the page's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.scriptrunner.script_cache import ScriptCache


@pytest.fixture(scope="session", autouse=True)
def as_in_one_server() -> Iterator[None]:
    """Each page of the test runner would look for components in all that is installed, and each run compile its script.

    That takes a fifth of a second of each page that is opened, and a fiftieth of each run.
    """
    scripts, compiled = ScriptCache(), ScriptCache.get_bytecode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        patch.setattr(ScriptCache, "get_bytecode", lambda _, path: compiled(scripts, path))
        patch.setattr("app.stale._DRAWING", 0.0)  # the test runner has drawn all when a run ends
        yield
