"""What a file is, is judged by its content, in one place; what is left out of a folder is said, and why."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from sgm import PictureError, UserError, encode_video, files_of, is_clip, open_picture, write_frames
from sgm.media.kinds import kind_of

CLIP = encode_video(np.zeros((2, 32, 32, 3), np.uint8), 7)


def still(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (10, 200, 30)).save(file, kind, **options)
    return file.getvalue()


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (32, 24))).save(file)
    return file.getvalue()


def tiff(order: str, *tags: tuple[int, int, int, int], magic: int = 42) -> bytes:
    """A TIFF of tags (tag, type, count, value) and no pixels."""
    entries = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("content", "group", "name"),
    [
        *((still(kind), "picture", kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WebP", "PPM")),
        (still("JPEG2000"), "picture", "JPEG 2000"),
        (still("TIFF", big_tiff=True), "picture", "TIFF"),
        (still("MPO", save_all=True, append_images=[Image.new("RGB", (32, 24))]), "picture", "JPEG"),
        (heic(), "picture", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "picture", "AVIF"),
        (CLIP, "clip", "MP4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "clip", "QuickTime"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "clip", "Matroska"),
        (tiff("<", (50706, 1, 4, 0x401)), "", "camera's raw"),  # DNG
        (tiff(">", (254, 4, 1, 1), (330, 4, 1, 100)), "", "camera's raw"),  # NEF: first a small picture
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "", "camera's raw"),  # CR2
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "", "camera's raw"),  # CR3
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "", "SVG"),
        (b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg width="3">', "", "SVG"),
        (b"%PDF-1.7\n", "", "PDF"),
        (b"<!DOCTYPE html><html>", "", "web page"),
        (b"8BPS\0\1", "", "Photoshop"),
        (b"PK\x03\x04", "", "archive"),
        (b"ID3\x04", "", "sound"),
        (b"", "", "unknown"),
        (b"To do: free the fish", "", "unknown"),
    ],
)
def test_kinds(content: bytes, group: str, name: str) -> None:
    kind = kind_of(io.BytesIO(content))
    assert (kind.group, name in kind.name) == (group, True), kind
    assert is_clip(content) == (group == "clip")
    if group != "picture":
        with pytest.raises(PictureError) as caught:
            open_picture(content, "given")
        assert "given is" in str(caught.value)
        assert name in str(caught.value) or name == "unknown"


def test_a_folder_s_pictures_and_clips_are_found_by_content_and_the_rest_is_said(tmp_path: Path) -> None:
    pictures = {
        "a.JFIF": still("JPEG"),
        "b.mpo": still("JPEG"),
        "c": still("PNG"),
        "IMG_0001.HEIC": heic(),
        "half.webp": b"",
        "wrong.mp4": still("WEBP"),
    }
    others = {
        "d.nef": tiff(">", (254, 4, 1, 1), (330, 4, 1, 100)),
        "e.jpg": b"%PDF-1.7",
        "film": CLIP,
        "noise": bytes(range(9)),
    }
    passed_over = dict.fromkeys(("._a.JFIF", ".DS_Store", "Thumbs.db", "notes.txt", "Makefile.am"), b"\0\5\x16\7")
    for name, content in (pictures | others | passed_over).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "inside" / ".hidden").mkdir(parents=True)
    for name in ("z.png", ".hidden/h.png"):
        (tmp_path / "inside" / name).write_bytes(still("PNG"))
    write_frames(tmp_path / "inside" / "G.MKV", np.zeros((2, 32, 32, 3), np.uint8), 7)
    reasons = ["d.nef (a camera's raw picture)", "e.jpg (a PDF document)", "film (an MP4 or QuickTime video)"]
    reasons += ["inside (a folder)", "noise (no picture)"]
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.png")
        reasons.append("pipe.png (no regular file)")
    said: list[str] = []
    assert {path.name for path in files_of(tmp_path, "picture", said.append)} == set(pictures)
    assert said == [f"Left out of {tmp_path}: {', '.join(reasons)}."]
    assert [path.name for path in files_of(tmp_path, "clip", said.append, deep=True)] == ["film", "G.MKV"]
    assert " and " in said[1], "of many, the first are named"
    (tmp_path / "inside" / "G.MKV").unlink()
    with pytest.raises(UserError, match=r"inside holds no clips that can be read.*z\.png \(a PNG picture\)"):
        files_of(tmp_path / "inside", "clip", said.append)
    assert len(said) == 2
