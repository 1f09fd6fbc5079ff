"""What all tests share."""

from __future__ import annotations

import gc
import os

import pytest

from tests.beside import PROGRAMS, Beside

# Tests, and what they start, run side by side, and tensors as small as theirs gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Collecting garbage among all modules and models takes a twentieth of the time, and little of it is garbage.
gc.set_threshold(100_000, 50, 100)
# No two signatures are alike, but files of equal clips are compared.
os.environ["SGM_C2PA"] = "off"
# The compiler of rembg's dependencies takes a minute in a new environment; tests have pictures too small to need it.
os.environ["NUMBA_DISABLE_JIT"] = "1"

# They begin first, so that two processes end together, and one computes while the other waits for browsers and servers;
# the rest follows in the order of names.
LONGEST = (
    *("test_browser", "test_generate", "test_views", "test_training", "test_formats", "test_ranks", "test_recipe"),
    *("test_cli", "test_bounded", "test_wheel", "test_api", "test_parity", "test_sweep", "test_stand"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """imageio collects garbage whenever it closes a video: not among all modules, which takes up to a second."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    """Long programs, begun at once where tests run in several processes: in each of these, the tests wait at times."""
    folder, worker = tmp_path_factory.getbasetemp(), getattr(request.config, "workerinput", {}).get("workerid")
    beside = Beside(folder.parent if worker else folder)
    if worker == "gw0":
        beside.start([name for name in PROGRAMS if any(name in item.name for item in request.session.items)])
    return beside
