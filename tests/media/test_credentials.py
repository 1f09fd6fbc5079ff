"""Content Credentials: the official reader validates them, and nothing is told that the user did not mean to share."""

from __future__ import annotations

import getpass
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgm import EXPORTS, ClipGrid, UserError, check_credentials, encode_video, read_frames, read_settings
from sgm.cli.commands import cli
from sgm.media import credentials

RECIPE = {
    "version": "svd_tiny",
    "sgm": {
        "format": 1,
        "watermark": False,
        "picture": "ab" * 32,
        "weights": {"name": "svd_tiny", "sha256": "cd" * 32},
    },
}
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.SWITCH)


@pytest.mark.parametrize("kind", ["video/mp4", "image/gif", "image/png"])
def test_the_official_reader_validates_what_is_signed(kind: str) -> None:
    c2pa = pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    write = {
        "video/mp4": encode_video,
        "image/gif": EXPORTS["GIF"][2],
        "image/png": EXPORTS["Last frame (PNG)"][2],
    }[kind]
    content = write(FRAMES, 7, RECIPE)
    with c2pa.Reader(kind, io.BytesIO(content)) as reader:
        told = json.loads(reader.json())
        assert reader.get_validation_state() == "Valid"
    (manifest,) = told["manifests"].values()
    assert manifest["signature_info"]["common_name"] == "self-made, names nobody"
    assert manifest["claim_generator_info"][0]["name"] == "sgm-video"
    assert manifest["ingredients"][0]["instance_id"] == f"sha256:{'ab' * 32}"
    (actions,) = (one["data"] for one in manifest["assertions"] if one["label"] == "c2pa.actions.v2")
    (action,) = actions["actions"]
    assert action["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    assert action["parameters"]["com.sgm-video.version"] == "svd_tiny"
    with c2pa.Reader(kind, io.BytesIO(content.replace(b"svd_tiny", b"svd_huge"))) as reader:
        assert reader.get_validation_state() == "Invalid"
    if kind == "video/mp4":
        assert len(read_frames(content)[0]) == 2
        assert read_settings(content) == RECIPE
    assert b"c2pa" not in write(FRAMES, 7, {**RECIPE, "sgm": {**RECIPE["sgm"], "input": True}})


def test_the_user_s_own_certificate_signs_and_a_wrong_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c2pa = pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    monkeypatch.setattr(credentials, "_SELF_MADE", "Somebody")
    chain, key = credentials._self_made()
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    monkeypatch.setenv(credentials.CERTIFICATE, str(tmp_path / "chain.pem"))
    credentials._signer.cache_clear()
    with pytest.raises(UserError, match="SGM_C2PA_KEY is missing"):
        check_credentials()
    monkeypatch.setenv(credentials.KEY, str(tmp_path / "chain.pem"))
    with pytest.raises(UserError, match="No file can be signed with"):
        check_credentials()
    monkeypatch.setenv(credentials.KEY, str(tmp_path / "key.pem"))
    check_credentials()
    with c2pa.Reader("video/mp4", io.BytesIO(encode_video(FRAMES, 7, RECIPE))) as reader:
        assert "Somebody" in reader.json()
    credentials._signer.cache_clear()


def test_a_clip_s_file_tells_nothing_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path, name of a file, user or machine, and nothing of the picture's EXIF."""
    secret = tmp_path / "somebody-private"
    secret.mkdir()
    exif = Image.Exif()
    exif[0x013B], exif[0x9C9C] = "Erika Mustermann", "a comment of hers"
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(FRAMES[0]).save(secret / "holiday.jpg", exif=exif, comment=b"taken at home")
    monkeypatch.chdir(secret)
    small = ("--frames", "2", "--steps", "1", "--width", "64", "--height", "64", "--device", "cpu")
    ran = CliRunner().invoke(cli, ["sample", "holiday.jpg", *small, "--out", str(secret / "clip.mp4")])
    assert ran.exit_code == 0, ran.output
    clip = secret / "clip.mp4"
    settings = read_settings(clip)
    assert settings
    frames, fps = read_frames(clip)
    grid = ClipGrid([[clip, None]], ["a", "b"], [""], title="grid")
    grid.picture().save(secret / "grid.png")
    files = {"MP4": clip.read_bytes(), "grid": encode_video(grid, fps), "sheet": (secret / "grid.png").read_bytes()}
    files |= {title: write(frames, fps, settings) for title, (_, _, write) in EXPORTS.items()}
    told = [str(tmp_path), "somebody-private", "holiday", "Mustermann", "comment of hers", "taken at home"]
    told += [str(Path.home()), str(Path(__file__).parents[2]), socket.gethostname()]
    told += [f"/{getpass.getuser()}/"]
    for title, content in files.items():
        for word in told:
            for form in (word.encode(), word.encode("utf-16-le")):
                assert len(word) < 4 or form not in content, (title, word)
