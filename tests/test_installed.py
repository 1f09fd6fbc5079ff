"""Which weights are installed: what is damaged, foreign or locked away costs its own row, and is said."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sgm import VERSIONS, UserError, best_version, check_weights, load_engine, version_status
from sgm.formats.diffusers import UNET
from sgm.versions import bundle
from tests.small_model import official_layout, write_empty

TINY = bundle() / "checkpoints" / "svd_tiny.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut_short(path: Path) -> None:
    write_empty(path, official_layout("svd"))
    os.truncate(path, 10**5)


def quantised(path: Path) -> None:
    save_file({f"{UNET}{i}.scale_weight": torch.ones(1) for i in range(3)}, path)


def bad_folder(path: Path) -> None:
    (path.with_suffix("") / "unet").mkdir(parents=True)
    (path.with_suffix("") / "unet" / "m.safetensors.index.json").write_text("[" * 10**5)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "is empty; get the file again"),
    "cut short": (cut_short, "is cut short"),
    "a web page": (lambda path: path.write_text("<html>"), "is a web page"),
    "a torch file": (lambda path: torch.save({"a": 1}, path), "holds no tensors"),
    "quantised": (quantised, "is quantised"),
    "a LoRA": (lambda path: save_file({"lora_up.weight": torch.ones(1)}, path), "is a LoRA"),
    "another's": (lambda path: write_empty(path, official_layout("sv3d_p")), "is not svd: it fits sv3d_p."),
    "a dead link": (lambda path: path.symlink_to("gone"), "is a link to gone, where nothing lies"),
    "a loop": (lambda path: path.symlink_to(path), "cannot be used"),
    "a folder": (bad_folder, "cannot be read as an index of weights"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_weights_cost_their_own_row_and_say_what_to_do(kind: str, folder: Path) -> None:
    make, said = BAD[kind]
    make(folder / "svd.safetensors")
    states = {version: version_status(version) for version in VERSIONS}
    bad = states["svd"]
    by_hand = kind in ("a dead link", "a loop")  # which a download leaves as they are
    assert (bad.state, bad.command) == ("on disk", "" if by_hand else "sgm download svd")
    assert said in bad.problem
    assert states["svd_tiny"].state == "ready"
    assert best_version() == "svd_tiny"


def test_whatever_fails_on_the_way_is_one_row_s_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise AssertionError("no reader foresaw \x1b[31mthis")

    monkeypatch.setattr("sgm.installed.stored_tensors", fail)
    (folder / "svd_tiny.safetensors").write_bytes(b"new")
    status = version_status("svd_tiny")
    assert status.state == "on disk"
    assert status.problem.endswith(r"cannot be read (AssertionError: no reader foresaw \x1b[31mthis).")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/models", "loop/models"])
def test_a_folder_that_cannot_be_entered_is_passed_over_and_that_said_once(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "loop").symlink_to("loop")
    monkeypatch.setenv("SGM_CHECKPOINTS", name)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert {version_status(version).state for version in VERSIONS} == {"ready", "missing"}
    (record,) = caplog.records
    assert "is passed over when weights are looked for (" in record.getMessage()


@pytest.mark.skipif(sys.platform == "win32", reason="home folders are named by HOME on POSIX")
def test_a_tilde_is_the_home_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SGM_CHECKPOINTS", "~/models")
    (folder / "models").mkdir()
    path = folder / "models" / "svd_tiny.safetensors"
    path.symlink_to(TINY)
    assert VERSIONS["svd_tiny"].checkpoint_path == path
    check_weights("svd_tiny", checkpoint="~/models/svd_tiny.safetensors")
    assert not (folder / "~").exists()


def test_weights_are_checked_without_reading_values(folder: Path) -> None:
    layout = official_layout("svd")
    whole = write_empty(folder / "any.safetensors", layout)  # 4.8 GB, were they read
    (folder / "svd_xt_1_1.safetensors").touch()
    check_weights("svd_xt", checkpoint=whole)
    network = write_empty(folder / "net.safetensors", {n: s for n, s in layout.items() if n.startswith(UNET)})
    check_weights("svd_xt", checkpoint=network, base=whole)
    for said, version, choices in (
        ("Version 'svd_2' is unknown", "svd_2", {}),
        ("The weights of svd are missing.", "svd", {}),
        ("svd_xt_1_1.safetensors is empty; get the file again", "svd_xt_1_1", {}),
        (
            "svd_xt_lcm is laid over svd_xt, whose weights are missing|The weights of svd_xt_lcm are missing",
            "svd_xt_lcm",
            {},
        ),
        ("holds the network alone", "svd_xt", {"checkpoint": network}),
        ("these are svd's weights: add --version svd", "svd_tiny", {"checkpoint": whole}),
        ("is a whole model, which takes nothing from a base", "svd_xt", {"checkpoint": whole, "base": whole}),
        ("There are no weights at", "svd_tiny", {"checkpoint": folder / "nowhere.safetensors"}),
        ("An empty path is given", "svd_tiny", {"checkpoint": ""}),
    ):
        with pytest.raises(UserError, match=said):
            check_weights(version, **choices)  # pyright: ignore[reportArgumentType]
    unfilled = check_weights("svd_tiny")
    assert load_engine("svd_tiny", device="cpu", unfilled=unfilled) is unfilled
    with pytest.raises(ValueError, match="has its weights already"):
        load_engine("svd_tiny", device="cpu", unfilled=unfilled)
