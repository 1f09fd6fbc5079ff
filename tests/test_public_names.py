"""`sgm` offers what it says, and costs nothing until it is used."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import sgm


@pytest.mark.parametrize("name", sgm.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(sgm, name) is getattr(sgm, name)
    assert name in dir(sgm)


def test_version_is_one_that_packages_can_have() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", sgm.__version__)
    assert "__version__" in dir(sgm)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(sgm, "nonsense")  # noqa: B009 - pyright knows that there is none


@pytest.mark.parametrize("module", ["sgm", "sgm.cli"])
def test_import_is_light(module: str) -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'av', 'omegaconf', 'streamlit', 'imageio', 'matplotlib'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
