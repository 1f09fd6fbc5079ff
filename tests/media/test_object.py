"""The object of a picture, cut out whole and centred; what happens when its background cannot be removed."""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sgm import PictureError, cut_out, fetched_first, open_picture, place_object
from sgm.media import object as module
from sgm.paths import private_folder
from sgm.training.masks import write_masks

# Finds what is dark: one convolution, where rembg's models are networks.
DARK_OBJECT = Path(__file__).parents[1] / "data" / "dark_object.onnx"


def cutout(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("RGBA", size, (10, 200, 30, 0))
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), (200, 20, 20, 255))
    return picture


def box_of(picture: Image.Image) -> tuple[int, int, int, int]:
    """Of what is not nearly white."""
    dark = (np.asarray(picture).min(axis=-1) < 200).nonzero()
    return int(dark[1].min()), int(dark[0].min()), int(dark[1].max()) + 1, int(dark[0].max()) + 1


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 300), (100, 50, 200, 250)),  # tall
        ((300, 700), (10, 20, 290, 60)),  # wide, far up
        ((200, 200), (150, 150, 200, 200)),  # in the corner
        ((64, 64), (0, 0, 64, 64)),  # all of it
        ((900, 300), (300, 0, 600, 300)),  # to the edges
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_objects_keep_whole_and_stand_in_the_middle(
    size: tuple[int, int], box: tuple[int, int, int, int], share: float
) -> None:
    frame = place_object(cutout(size, box), 576, 576, share)
    assert (frame.mode, frame.size) == ("RGB", (576, 576))
    left, top, right, bottom = box_of(frame)
    wide, tall = box[2] - box[0], box[3] - box[1]
    longer = 576 * share
    assert max(right - left, bottom - top) == pytest.approx(longer, abs=3)
    assert (right - left) / (bottom - top) == pytest.approx(wide / tall, rel=0.05)
    assert (left + right) / 2 == pytest.approx(288, abs=2)
    assert (top + bottom) / 2 == pytest.approx(288, abs=2)
    if share < 1:
        assert frame.getpixel((0, 0)) == (255, 255, 255)
    assert np.asarray(frame)[288, 288].tolist() == [
        200,
        20,
        20,
    ]  # the object's own colour, of its green surroundings nothing
    assert not (np.asarray(frame)[..., 1].astype(int) - np.asarray(frame)[..., 0] > 5).any()


def test_nothing_visible_is_said() -> None:
    with pytest.raises(PictureError, match="No object was found"):
        place_object(Image.new("RGBA", (50, 50), (255, 0, 0, 3)), 576, 576)


def test_a_picture_s_own_transparency_says_what_the_object_is(tmp_path: Path) -> None:
    cutout((60, 40), (10, 10, 30, 20)).save(tmp_path / "object.png")
    picture = open_picture(tmp_path / "object.png", keep_alpha=True)
    assert picture.mode == "RGBA"
    assert cut_out(picture) is picture
    assert picture.getchannel("A").getbbox() == (10, 10, 30, 20)
    assert open_picture(tmp_path / "object.png").mode == "RGB"
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert open_picture(tmp_path / "plain.png", keep_alpha=True).mode == "RGB"


def test_kept_transparency_is_upright_and_of_any_mode(tmp_path: Path) -> None:
    turned = cutout((60, 40), (0, 0, 60, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    picture = open_picture(tmp_path / "turned.png", keep_alpha=True)
    assert picture.size == (40, 60)
    assert picture.getchannel("A").getbbox() == (30, 0, 40, 60)
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([255, 255, 255, 200, 0, 0])
    palette.paste(1, (5, 5, 10, 10))
    palette.save(tmp_path / "palette.png", transparency=0)
    assert open_picture(tmp_path / "palette.png", keep_alpha=True).getchannel("A").getbbox() == (5, 5, 10, 10)


def test_kept_transparency_of_odd_files() -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20))
    turned = cutout((60, 40), (0, 0, 60, 10))
    for picture, options in ((grey, {"transparency": 0}), (turned, {"exif": b"Exif\0\0nonsense"})):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        kept = open_picture(file.getvalue(), keep_alpha=True)
        flat = Image.new("RGB", kept.size, "white")
        flat.paste(kept, mask=kept.getchannel("A") if kept.mode == "RGBA" else None)
        assert np.array_equal(np.asarray(flat), np.asarray(open_picture(file.getvalue())))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for rembg's models, and no way out."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")  # rembg's releases for Python 3.10 take their own models only
    monkeypatch.setenv("HOME", str(tmp_path))
    module._session.cache_clear()
    return tmp_path


def test_rembg_removes_the_background_with_a_model_from_its_folder(home: Path) -> None:
    shutil.copy(DARK_OBJECT, home / "u2netp.onnx")
    picture = Image.new("RGB", (150, 100), "white")
    ImageDraw.Draw(picture).ellipse((100, 10, 140, 50), "black")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = cut_out(picture, "u2netp")
    assert torch.get_num_threads() == 1, "a clip's bits depend on it"
    torch.set_num_threads(threads)
    assert "pymatting" not in sys.modules, "numba compiles the whole of it for a minute"
    assert found.mode == "RGBA"
    alpha = np.asarray(found.getchannel("A"))
    assert alpha[30, 120] > 250
    assert alpha[75, 25] < 5
    left, top, right, bottom = box_of(place_object(found, 576, 576))
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((288, 288), abs=6)
    assert right - left == pytest.approx(0.9 * 576, abs=12)


def test_masks_for_training_are_written_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = home / "pictures"
    pictures.mkdir()
    picture = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(picture).ellipse((200, 20, 280, 100), "black")
    picture.save(pictures / "ball.png")
    (pictures / "damaged.jpg").write_bytes(b"none")
    masks = [home / "masks" / "ball.png"]
    assert write_masks(pictures, home / "masks") == masks
    mask = np.asarray(Image.open(masks[0]))
    assert mask.shape == (200, 300)
    assert mask[60, 240] > 230
    assert mask[150, 50] < 25
    assert "damaged.jpg" in capsys.readouterr().err
    masks[0].write_bytes(b"mine")
    assert write_masks(pictures, home / "masks") == masks
    assert masks[0].read_bytes() == b"mine"


def test_offline_without_a_model_is_said_after_a_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "sgm"),
        pytest.raises(
            PictureError,
            match=r"rembg could not get its model u2net .* holds u2net\.onnx in U2NET_HOME, .* transparent",
        ),
    ):
        cut_out(Image.new("RGB", (30, 30), "white"))
    assert f"rembg fetches its model u2net (176 MB) into {home}, once" in caplog.text


def test_without_a_home_the_model_goes_to_a_temporary_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("no folder, so nothing can be written below")
    for name, value in {"HOME": home / "file" / "home", "TMPDIR": home}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("XDG_DATA_HOME", "REMBG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("U2NET_HOME")
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it was, before TMPDIR
    note = fetched_first(Image.new("RGB", (30, 30), "white"))
    folder = Path(os.environ["U2NET_HOME"])
    assert str(folder) in note
    assert folder.is_relative_to(home)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DARK_OBJECT, folder / "u2net.onnx")
    assert fetched_first(Image.new("RGB", (30, 30), "white")) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="folders are closed by POSIX's modes")
def test_the_temporary_folder_is_one_that_no_other_user_has_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = private_folder()
    assert (private_folder(), own.stat().st_mode & 0o777) == (own, 0o700)
    own.chmod(0o777)
    others = [private_folder()]
    own.rmdir()
    own.symlink_to(others[0])
    others.append(private_folder())
    assert own not in others
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in others)


def test_a_package_gives_a_module_alone_and_is_whole_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy" / "part").mkdir(parents=True)
    (tmp_path / "heavy" / "__init__.py").write_text("from heavy.part import light, slow")
    (tmp_path / "heavy" / "part" / "__init__.py").write_text("import heavy.part.slow")
    (tmp_path / "heavy" / "part" / "light.py").write_text("value = 7")
    (tmp_path / "heavy" / "part" / "slow.py").write_text("import sys\nsys.slow = True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "slow", False, raising=False)
    with module._bare("heavy"):
        light = importlib.import_module("heavy.part.light")
    assert (light.value, sys.slow) == (7, False)  # pyright: ignore[reportAttributeAccessIssue]
    whole = importlib.import_module("heavy")
    assert (whole.part.light.value, sys.slow) == (7, True)  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("heavy", "heavy.part", "heavy.part.light", "heavy.part.slow"):
        del sys.modules[name]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are closed by POSIX's modes")
def test_what_is_compiled_for_rembg_goes_to_a_temporary_folder_where_no_other_can_be_written(tmp_path: Path) -> None:
    """With a package that is compiled as rembg's own dependency is, in a moment instead of minutes."""
    for name in ("site/rembg", "home", "temporary"):
        (tmp_path / name).mkdir(parents=True)
    source = "import os\nassert os.environ['ORT_DISABLE_TELEMETRY'] == '1'  # before onnxruntime comes\n"
    source += "from numba import njit\n@njit('i8(i8)', cache=True)\ndef twice(x):\n    return 2 * x\n"
    (tmp_path / "site" / "rembg" / "__init__.py").write_text(source)
    for name in ("site/rembg", "home"):
        (tmp_path / name).chmod(0o500)
    paths = {"HOME": "home", "TMPDIR": "temporary", "PYTHONPATH": "site"}
    environment = {**os.environ, **{name: str(tmp_path / folder) for name, folder in paths.items()}}
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[2])
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"):
        environment.pop(name, None)

    def lose_the_rights_of_root() -> None:
        if os.getuid() == 0 and sys.platform == "linux":
            for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP

    program = "from sgm.media.object import _rembg; print(_rembg().twice(21))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env=environment,
        preexec_fn=lose_the_rights_of_root,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n"
    assert done.stderr in ("", f"{module.PREPARING}\n")  # where that takes long
    assert list((tmp_path / "temporary" / f"sgm-video-{os.getuid()}").rglob("*.nbi"))
