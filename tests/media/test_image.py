"""Every kind of picture arrives upright and in RGB; what cannot be used is refused in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageSequence, features

from sgm.media import image as module
from sgm.media.image import PictureError, describe_fit, fit_picture, open_picture
from tests.media.damage import damaged


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "JPEG2000", "PPM", "AVIF"])
def test_formats(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    options = {"lossless": True} if format == "WEBP" else {}
    tolerance = {"JPEG": 12, "AVIF": 12}.get(format, 0)
    result = open_picture(encoded(Image.fromarray(gradient()), format, **options))
    assert np.abs(pixels(result) - gradient()).max() <= tolerance


def test_sources(tmp_path):
    content = encoded(Image.fromarray(gradient()))
    path = tmp_path / "größe.png"
    path.write_bytes(content)
    with path.open("rb") as file:
        for source in (path, str(path), content, io.BytesIO(content), file):
            assert (pixels(open_picture(source)) == gradient()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = Image.fromarray(gradient())
    turn = Image.Transpose
    stored = {  # how a camera lays the picture down, the inverse of what the tag asks for
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    laid = upright if stored is None else upright.transpose(stored)
    for content in (encoded(laid, "JPEG", quality=95, exif=exif), encoded(laid, "PNG", exif=exif)):
        result = open_picture(content)
        assert np.abs(pixels(result) - gradient()).max() < 20
        assert fit_picture(result, 40, 30).tobytes() == result.tobytes(), "turned a second time"
        assert fit_picture(Image.open(io.BytesIO(content)), 40, 30).tobytes() == result.tobytes()


@pytest.mark.filterwarnings("error")
def test_broken_exif_is_no_broken_picture():
    content = encoded(Image.fromarray(gradient()), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert np.abs(pixels(open_picture(content)) - gradient()).max() < 20


def test_alpha_is_laid_on_white():
    alpha = np.zeros((30, 40, 1), np.uint8)
    alpha[:, 10:20], alpha[:, 20:] = 128, 255
    result = pixels(open_picture(encoded(Image.fromarray(np.concatenate([gradient(), alpha], axis=-1)))))
    assert (result[:, :10] == 255).all()
    assert np.abs(result[:, 10:20] - (gradient()[:, 10:20] * 128.0 + 255 * 127) / 255).max() <= 1
    assert (result[:, 20:] == gradient()[:, 20:]).all()


def test_grey_with_alpha_and_plain_grey_and_bilevel():
    grey = Image.fromarray(gradient()[..., 0])
    assert (pixels(open_picture(encoded(grey))) == gradient()[..., :1]).all()
    both = Image.merge("LA", (grey, Image.new("L", grey.size, 0)))
    assert (pixels(open_picture(encoded(both))) == 255).all()
    assert set(np.unique(pixels(open_picture(encoded(grey.convert("1")))))) == {0, 255}


def test_palette_with_and_without_transparency():
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 250])
    image.putdata([0, 1, 2, 0] * 2)
    expected = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 250], [255, 0, 0]])
    assert (pixels(open_picture(encoded(image)))[0] == expected).all()
    one = pixels(open_picture(encoded(image, transparency=1)))[0]
    assert (one[1] == 255).all()
    assert (one[[0, 2, 3]] == expected[[0, 2, 3]]).all()
    half = pixels(open_picture(encoded(image, transparency=bytes([0, 128, 255]))))[0]
    assert (half[0] == 255).all()
    assert np.abs(half[1] - [127, 227, 127]).max() <= 1
    assert (half[2] == [0, 0, 250]).all()


def test_one_transparent_colour():
    assert (pixels(open_picture(encoded(Image.new("RGB", (3, 3), (9, 8, 7)), transparency=(9, 8, 7)))) == 255).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:16, :, 0], ink[16:, :, 1:3] = 255, 255  # cyan above, red below
    result = pixels(
        open_picture(encoded(Image.fromarray(ink, "CMYK"), format, **({"quality": 95} if format == "JPEG" else {})))
    )
    assert np.abs(result[4, 4] - [0, 255, 255]).max() < 12
    assert np.abs(result[28, 28] - [255, 0, 0]).max() < 12


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256).astype(">u2").reshape(16, 16)
    for content in (
        encoded(Image.fromarray(values.astype(np.uint16))),
        encoded(Image.fromarray(values.astype(np.uint16)), "TIFF"),
        b"P5 16 16 65535\n" + values.tobytes(),
    ):
        assert (pixels(open_picture(content))[..., 0].ravel() == np.arange(256)).all()
    dark = pixels(open_picture(encoded(Image.fromarray(np.full((4, 4), 2570, np.uint16)))))
    assert (dark == 10).all(), "a dark picture must stay dark"


def test_16_bit_colour_and_alpha():
    for colour, channels, expected in ((2, 3, [0, 128, 255]), (6, 4, [127, 191, 255]), (4, 2, [127] * 3)):
        pixel = ([0, 32896, 65535] if channels > 2 else [0]) + ([32896] if channels in (2, 4) else [])
        row = b"\0" + struct.pack(f">{channels}H", *pixel) * 5
        result = pixels(open_picture(png(5, 4, 16, colour, row * 4)))
        assert np.abs(result - expected).max() <= 1


def test_16_bit_grey_with_a_transparent_value():
    key = struct.pack(">H", 1000)
    extra = struct.pack(">I", 2) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    result = pixels(open_picture(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 32896), extra)))
    assert result[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_float_greys(top):
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    values[0, 0] = np.nan
    result = pixels(open_picture(encoded(Image.fromarray(values), "TIFF")))
    assert np.abs(result[..., 0].ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 10, 20), (0, 0, 255)))
    content = encoded(first, format, save_all=True, append_images=[second, first], duration=50)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(content))))) > 1
    assert np.abs(pixels(open_picture(content)) - [250, 10, 20]).max() < 8


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12):
        name = bytes(data[entry : entry + 4])
        data[entry : entry + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(data)


def test_a_colour_profile_is_applied_once():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    content = encoded(red, icc_profile=swapped_profile())
    result = open_picture(content)
    assert np.abs(pixels(result) - [0, 255, 0]).max() <= 3
    assert np.abs(pixels(fit_picture(result, 8, 8)) - [0, 255, 0]).max() <= 3
    assert (pixels(open_picture(encoded(red, icc_profile=b"rubbish" * 30))) == [255, 0, 0]).all()
    cmyk_with_wrong_profile = encoded(
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=swapped_profile()
    )
    assert np.abs(pixels(open_picture(cmyk_with_wrong_profile)) - [255, 0, 0]).max() <= 3


def refused(source, *words: str, name: str | None = "pic.png", **options):
    with pytest.raises(PictureError) as caught:
        open_picture(source, name, **options)
    message = str(caught.value)
    assert all(word in message for word in (*words, name or "")), message
    assert "\n" not in message
    assert message.endswith(".")


def test_heic_is_read_upright_and_in_srgb():
    wide = Image.fromarray(gradient(64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    wide.info["icc_profile"] = swapped_profile()
    pillow_heif.from_pillow(wide).save(file, quality=95, exif=exif.tobytes())
    result = open_picture(file.getvalue())
    assert result.size == (48, 64)
    turned = np.asarray(wide.transpose(Image.Transpose.ROTATE_270)).astype(int)[..., [1, 0, 2]]
    assert np.abs(pixels(result) - turned).mean() < 4
    refused(file.getvalue()[:300], "is a HEIC picture, but damaged")


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"parameters\0" + b"x" * (3 << 20)),
        chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(100 << 20), 9)),
        chunk(b"iTXt", b"bomb\0\1\0\0\0" + zlib.compress(bytes(100 << 20), 9)) * 20,
        chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(100 << 20), 9)),
        chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    ],
    ids=["text", "text bomb", "text bombs", "profile bomb", "frames"],
)
def test_what_stands_beside_a_png_s_pixels_does_not_matter(extra, where):
    content = encoded(Image.fromarray(gradient()))
    at = 33 if where == "before" else len(content) - 12
    assert (pixels(open_picture(content[:at] + extra + content[at:])) == gradient()).all()


def test_a_large_profile_is_applied():
    profile = swapped_profile() + np.random.default_rng(0).bytes(2 << 20)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    content = encoded(Image.new("RGB", (8, 8), (255, 0, 0)))
    content = content[:33] + chunk(b"iCCP", b"large\0\0" + zlib.compress(profile)) + content[33:]
    assert np.abs(pixels(open_picture(content)) - [0, 255, 0]).max() <= 3


@pytest.mark.parametrize(
    "value", [(3, struct.pack("<HH", 7, 0)), (4, struct.pack("<I", 7)), (2, b"abc\0"), (5, bytes(4))]
)
def test_a_profile_of_an_odd_type_is_ignored(value):
    content = bytearray(encoded(Image.fromarray(gradient()), "TIFF", icc_profile=swapped_profile()))
    at = content.index(struct.pack("<HH", 34675, 7))
    content[at : at + 12] = struct.pack("<HHI", 34675, value[0], 1) + value[1]
    for keep_alpha in (False, True):
        assert (pixels(open_picture(bytes(content), keep_alpha=keep_alpha)) == gradient()).all()


def test_scans_are_counted_before_they_are_read():
    content = encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    usual = content[:-2] + scan * 20 + b"\xff\xd9"
    assert open_picture(usual).size == (2000, 2000)
    refused(content[:-2] + scan * 100_000 + b"\xff\xd9", "100010 scans, more than the 100")
    # What stands behind the picture, or in another's thumbnail, is none of it.
    assert open_picture(usual + scan * 1000).size == (2000, 2000)
    inside = b"\xff\xe1" + struct.pack(">H", 2 + 3000) + (scan * 1000)[:3000]
    assert open_picture(usual[:2] + inside + usual[2:]).size == (2000, 2000)


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_is_told_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    floats = np.zeros((4, 4, 3), np.float32)
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 32), (262, 3, 1, 2), (273, 4, 1, 200), (277, 3, 1, 3)]
    tags += [(278, 3, 1, 4), (279, 4, 1, floats.nbytes), (339, 3, 1, 3)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    refused(head.ljust(200, b"\0") + floats.tobytes(), "floating-point numbers", "8 or 16 bits")
    refused(head, "is a TIFF")
    for address in ("https://example.org/cat.jpg", Path("https://example.org/cat.jpg"), "file:///home/me/cat.jpg"):
        refused(address, "://", "is an address, not a file: save the picture", name=None)
    refused("data/cat.jpg", "does not exist")


def test_colours_are_the_same_whether_or_not_transparency_is_kept():
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 7
    content = encoded(Image.fromarray(noise), icc_profile=swapped_profile(), exif=exif)
    kept = open_picture(content, keep_alpha=True)
    assert kept.mode == "RGBA"
    assert fit_picture(kept, 16, 16).tobytes() == fit_picture(open_picture(content), 16, 16).tobytes()


@pytest.mark.filterwarnings("error")
def test_two_hundred_damaged_pictures_are_read_or_said():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
    sources = [encoded(image, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {})) for kind in kinds]
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file)
    sources += [file.getvalue(), encoded(image, "JPEG", progressive=True, icc_profile=swapped_profile())]
    outcomes = set()
    for content in damaged(sources, 200):
        for keep_alpha in (False, True):
            try:
                open_picture(content, keep_alpha=keep_alpha)
                outcomes.add("read")
            except PictureError:
                outcomes.add("said")
    assert outcomes == {"read", "said"}


def test_files_that_are_no_pictures(tmp_path):
    refused(b"", "empty")
    refused(b"hello, this is text", "not a picture")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "not a picture")
    refused(b"\x89PNG\r\n\x1a\n", "a PNG picture, but damaged")
    refused(tmp_path, "folder", str(tmp_path), name=None)
    refused(tmp_path / "gone.jpg", "does not exist", "gone.jpg", name=None)
    refused("nul\0byte.png", "does not exist")
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "empty.jpg").open("rb") as file:
        refused(file, "empty.jpg is empty", name=None)
    refused(io.BytesIO(b""), "The picture is empty", name=None)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "regular file")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files(format, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), format)
    refused(content[: int(len(content) * part)], "damaged")


def test_a_lazy_damaged_picture_is_refused_by_fit_picture():
    content = encoded(Image.fromarray(gradient(200, 200)), "JPEG")
    with pytest.raises(PictureError, match="damaged"):
        fit_picture(Image.open(io.BytesIO(content[: len(content) // 2])), 16, 16)


def test_files_that_are_too_large(tmp_path):
    content = encoded(Image.fromarray(gradient())) + bytes(2 << 20)
    path = tmp_path / "big.png"
    path.write_bytes(content)
    for source in (path, content, io.BytesIO(content), io.BufferedReader(Zeros())):  # the last one never ends
        refused(source, "larger than the 1 MB", max_bytes=1 << 20)
    assert open_picture(path).size == (40, 30)
    with path.open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    refused(path, "1024 MB")


class Zeros(io.RawIOBase):
    """A stream without an end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return len(buffer)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_pictures_with_too_many_pixels(width, height):
    refused(png(width, height, 8, 2, b""), "100 megapixels")


def test_a_large_picture_within_the_limit_raises_no_warning(recwarn):
    result = open_picture(png(9_600, 9_600, 1, 0, (b"\0" + b"\xff" * 1200) * 9_600))
    assert result.size == (9_600, 9_600)
    assert not recwarn.list


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through `resource`")
def test_a_decompression_bomb_takes_no_memory(tmp_path):
    """A real one: 20 kB that hold 144 megapixels, refused in a process whose peak shows nothing of them."""
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(12_000, 12_000, 1, 0, bytes(1501 * 12_000)))
    assert bomb.stat().st_size < 30_000
    program = """
import resource, sys
from sgm.media.image import PictureError, open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_picture(sys.argv[1])
except PictureError as error:
    print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "darwin" else 1))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program, bomb], capture_output=True, text=True, check=True, cwd=root)
    sentence, kilobytes = done.stdout.splitlines()
    assert "100 megapixels" in sentence
    assert int(kilobytes) < 20_000
    assert done.stderr == ""


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (320, 192), (1, 1), (1, 900), (900, 1), (1000, 333)])
def test_fit_gives_exactly_the_size(mode, size):
    result = fit_picture(Image.new("RGB", size, (10, 200, 30)), 64, 48, mode)
    assert result.size == (64, 48)
    assert np.abs(pixels(result) - [10, 200, 30]).max() <= 1


def test_crop_keeps_the_position_asked_for():
    wide = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None], 50, axis=0)).convert("RGB")
    left, middle, right = (pixels(fit_picture(wide, 50, 50, position=(x, 0.5)))[25, :, 0] for x in (0, 0.5, 1))
    assert (left == np.arange(50)).all()
    assert (middle == np.arange(75, 125)).all()
    assert (right == np.arange(150, 200)).all()
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    assert (pixels(fit_picture(tall, 50, 50, position=(0.5, 1)))[:, 25, 0] == np.arange(150, 200)).all()


def test_pad_keeps_the_whole_picture_and_fills_the_sides_from_it():
    tall = Image.fromarray(gradient(48, 96))
    result = pixels(fit_picture(tall, 192, 96, "pad"))
    assert (result[:, 72:120] == gradient(48, 96)).all()
    assert (pixels(fit_picture(tall, 192, 96, "pad", (0, 0)))[:, :48] == gradient(48, 96)).all()
    sides = result[:, :72]
    assert np.abs(np.diff(sides, axis=0)).max() < 8, "the sides are blurred"
    assert sides[..., 2].mean() == pytest.approx(60, abs=2), "and of the picture's colours"


def test_fit_takes_any_picture_and_leaves_it_alone():
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.info["dpi"] = (72, 72)
    assert (pixels(fit_picture(image, 4, 4)) == 255).all()
    assert image.mode == "RGBA"
    assert image.info == {"dpi": (72, 72)}


@pytest.mark.parametrize(
    ("width", "height", "mode", "position"),
    [(0, 4, "crop", (0, 0)), (4, 4, "stretch", (0, 0)), (4, 4, "crop", (0, 2)), (4, 4, "pad", (-1, 0))],
)
def test_fit_refuses_nonsense(width, height, mode, position):
    with pytest.raises(ValueError, match="fit"):
        fit_picture(Image.new("RGB", (4, 4)), width, height, mode, position)


@pytest.mark.parametrize(
    ("size", "mode", "line"),
    [
        ((4000, 3000), "crop", "Cropped 4000×3000 to 4000×2400 (5:3), scaled to 320×192."),
        ((3000, 4000), "crop", "Cropped 3000×4000 to 3000×1800 (5:3), scaled to 320×192."),
        ((1600, 960), "crop", "Scaled 1600×960 to 320×192."),
        ((1600, 960), "pad", "Scaled 1600×960 to 320×192."),
        ((320, 192), "crop", "Used 320×192 as it is."),
        ((320, 192), "pad", "Used 320×192 as it is."),
        ((3000, 4000), "pad", "Scaled 3000×4000 to 144×192, edges filled with a blurred copy to 320×192."),
    ],
)
def test_describe_fit(size, mode, line):
    assert describe_fit(size, 320, 192, mode) == line


@pytest.mark.parametrize("size", [(1024, 576), (500, 375), (333, 500), (321, 192), (320, 192)])
def test_crop_is_that_of_scaling_first_and_then_cutting_whole_pixels(size):
    picture = Image.fromarray(gradient(*size)).resize(size)
    scale = max(320 / size[0], 192 / size[1])
    whole = picture.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
    left, top = (whole.width - 320) // 2, (whole.height - 192) // 2
    expected = whole.crop((left, top, left + 320, top + 192))
    assert np.abs(pixels(fit_picture(picture, 320, 192)) - pixels(expected)).max() <= 1


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_scale_gives_the_same_view_in_more_pixels(mode):
    picture = Image.fromarray(gradient(500, 375))
    large = fit_picture(picture, 80, 48, mode, (0.2, 0.9), scale=4)
    assert large.size == (320, 192)
    small = large.resize((80, 48), Image.Resampling.BOX)
    assert np.abs(pixels(small) - pixels(fit_picture(picture, 80, 48, mode, (0.2, 0.9)))).mean() <= 1
