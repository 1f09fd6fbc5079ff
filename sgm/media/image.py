"""Input pictures: reading them in many formats, upright and in RGB, and fitting them to a clip's size."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageFilter, ImageOps

from sgm.errors import UserError
from sgm.media.containers import has_floats, jpeg_scans, png_pixels
from sgm.media.kinds import CAMERA_RAW, HEIC, TIFF, UNKNOWN, Kind, kind_of

MAX_BYTES = 1 << 30
MAX_PIXELS = 100_000_000
MAX_SCANS = 100  # of a progressive JPEG; ten are usual, and each one takes as long as a whole picture

# An allow-list: some of Pillow's formats call other programs (EPS) or hide the true size in their header (ICO).
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
_ADVICE = "give a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP, TIFF, JPEG 2000 or PPM picture."
_ADDRESS = re.compile(r"(?i)(https?|ftp|file|data|blob):")
_DAMAGED = "damaged or cut short: fetch or save it again."


class PictureError(UserError):
    """A picture that cannot be used; the message names the file and says what to do."""


def open_picture(
    source: str | Path | bytes | BinaryIO,
    name: str | None = None,
    *,
    keep_alpha: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """Read a picture as an upright RGB image of its own size, whatever its format, mode, depth and orientation.

    Transparent pixels are composited onto white; with `keep_alpha`, the picture is RGBA instead (except greys of 16
    bits). Colours are converted from an embedded profile to sRGB; of an animation the first frame is read. What a file
    is, is judged by its content. source: a path, a file's content or an open binary file. name: the file's name in
    messages.
    Raises PictureError for a file that is missing, empty, damaged, no picture, larger than `max_bytes`, of more than
    MAX_PIXELS or MAX_SCANS; these are counted before any pixel is decoded.
    """
    data, name = _read(source, name, max_bytes)
    if not data:
        raise PictureError(f"{name} is empty (0 bytes): {_ADVICE}")
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    kind = kind_of(io.BytesIO(data))
    too_many = f"more than the {MAX_PIXELS // 10**6} megapixels that can be read: scale it down first."
    if kind.group != "picture" and kind != UNKNOWN:
        raise PictureError(_refusal(kind, data, name))
    if (scans := jpeg_scans(data)) > MAX_SCANS:
        raise PictureError(f"{name} has {scans} scans, more than the {MAX_SCANS} that can be read: save it anew.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd about a file, and of sizes near Pillow's own limit
        try:
            image = _lazy(kind, data)
        except Image.DecompressionBombError:
            raise PictureError(f"{name} says that it has {too_many}") from None
        except Exception as error:  # decoders raise anything from OSError to SyntaxError
            raise PictureError(_refusal(kind, data, name)) from error
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{name} has {image.width}×{image.height} pixels, {too_many}")
            return _upright(image, name, keep_alpha)


def on_white(frame: Image.Image) -> Image.Image:
    """An RGB or RGBA frame on white, RGB."""
    flat = Image.new("RGB", frame.size, "white")
    flat.paste(frame, mask=frame if frame.mode == "RGBA" else None)
    return flat


def _lazy(kind: Kind, data: bytes) -> ImageFile.ImageFile:
    """The picture, none of whose pixels are decoded yet."""
    if kind == HEIC:
        from pillow_heif import HeifImageFile  # imported here, since few pictures need it

        return HeifImageFile(io.BytesIO(data))
    data, profile = png_pixels(data)
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if profile:
        image.info["icc_profile"] = profile
    return image


def _refusal(kind: Kind, data: bytes, name: str) -> str:
    """The message for a file that is no picture, or none that can be read."""
    if kind == TIFF and has_floats(io.BytesIO(data)):
        return f"{name} is a TIFF of floating-point numbers, which cannot be read: save it with 8 or 16 bits a channel."
    if kind == TIFF:
        return f"{name} is a TIFF that is damaged or of a kind that cannot be read: save it anew, or as a PNG."
    if kind.group == "picture":
        return f"{name} is {kind.name}, but {_DAMAGED}"
    if kind.group == "clip":
        return f"{name} is {kind.name}, not a picture: save one of its frames as a picture, and give that."
    if kind == CAMERA_RAW:
        return f"{name} is {kind.name}, which cannot be read: export it as a JPEG or TIFF."
    if kind != UNKNOWN:
        return f"{name} is {kind.name}, not a picture that can be read: {_ADVICE}"
    return f"{name} is not a picture that can be read, or is damaged: {_ADVICE}"


def fit_picture(
    image: Image.Image,
    width: int,
    height: int,
    mode: str = "crop",
    position: tuple[float, float] = (0.5, 0.5),
    scale: int = 1,
) -> Image.Image:
    """Fit a picture to exactly `width` x `height` pixels, in RGB, without distortion.

    mode: "crop" scales the picture to cover the frame and crops it; "pad" scales it to lie within the frame and fills
    the rest with a blurred copy. position: (x, y) of the crop or of the padded picture, each 0 to 1; (0, 0) is the top
    left. scale: factor for width and height, for a larger version of the same view. Raises PictureError if the
    picture's file turns out to be damaged, ValueError for bad arguments.
    """
    if mode not in ("crop", "pad"):
        raise ValueError(f'The fit is {mode!r}, but must be "crop" or "pad".')
    if min(width, height) < 1 or not all(0 <= p <= 1 for p in position):
        raise ValueError(f"Cannot fit to {width}×{height} at {position}: sizes start at 1, positions lie in 0 to 1.")
    image = _upright(image, "The picture")
    size, corner = _covering(image.size, width, height, position)
    per_x, per_y = image.width / size[0], image.height / size[1]
    box = corner[0] * per_x, corner[1] * per_y, (corner[0] + width) * per_x, (corner[1] + height) * per_y
    width, height = width * scale, height * scale
    cover = image.resize(
        (width, height), Image.Resampling.LANCZOS, (*box[:2], min(box[2], image.width), min(box[3], image.height))
    )
    if mode == "crop":
        return cover
    size = _contained(image.size, width, height)
    if size == (width, height):
        return image.resize(size, Image.Resampling.LANCZOS)
    padded = cover.filter(ImageFilter.GaussianBlur(max(width, height) / 24))
    corner = round((width - size[0]) * position[0]), round((height - size[1]) * position[1])
    padded.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
    return padded


def describe_fit(size: tuple[int, int], width: int, height: int, mode: str = "crop") -> str:
    """One line on what `fit_picture` does to a picture of `size` (width, height)."""
    original, target = f"{size[0]}×{size[1]}", f"{width}×{height}"
    if tuple(size) == (width, height):
        return f"Used {original} as it is."
    if mode == "pad":
        inner = _contained(size, width, height)
        if inner != (width, height):
            return f"Scaled {original} to {inner[0]}×{inner[1]}, edges filled with a blurred copy to {target}."
    else:
        scale = max(width / size[0], height / size[1])
        crop = max(1, round(width / scale)), max(1, round(height / scale))
        if crop != tuple(size):
            divisor = math.gcd(width, height)
            ratio = f"{width // divisor}:{height // divisor}"
            return f"Cropped {original} to {crop[0]}×{crop[1]} ({ratio}), scaled to {target}."
    return f"Scaled {original} to {target}."


def _covering(
    size: tuple[int, int], width: int, height: int, position: tuple[float, float]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The picture's size when scaled to cover width x height, and the top left corner of the crop in it.

    Both in whole pixels, as if the picture were resized, then cropped: other tools do so, and frames match theirs.
    """
    scale = max(width / size[0], height / size[1])
    scaled = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    return scaled, (int((scaled[0] - width) * position[0]), int((scaled[1] - height) * position[1]))


def _contained(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size within width x height that has the picture's aspect ratio."""
    scale = min(width / size[0], height / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _read(source: str | Path | bytes | BinaryIO, name: str | None, max_bytes: int) -> tuple[bytes, str]:
    """The content, at most its first `max_bytes` + 1 bytes, and the name for messages."""
    if isinstance(source, bytes):
        return source, name or "The picture"
    if not isinstance(source, (str, Path)):
        return source.read(max_bytes + 1), name or Path(str(getattr(source, "name", "The picture"))).name
    path, name = Path(source), name or str(source)
    try:
        if path.is_dir():
            raise PictureError(f"{name} is a folder, not a picture: give a picture file.")
        if not path.exists():
            if _ADDRESS.match(str(source)):
                address = re.sub(r":[/\\](?![/\\])", "://", name, count=1)  # a path has lost one of its slashes
                raise PictureError(f"{address} is an address, not a file: save the picture and give the file.")
            raise PictureError(f"{name} does not exist: check the name of the picture.")
        if not path.is_file():  # a pipe would wait for ever
            raise PictureError(f"{name} is not a regular file: {_ADVICE}")
        if path.stat().st_size > max_bytes:
            raise _too_large(name, max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes + 1), name
    except OSError as error:
        raise PictureError(f"{name} cannot be read ({error.strerror}): check its name and permissions.") from error


def _too_large(name: str, max_bytes: int) -> PictureError:
    return PictureError(f"{name} is larger than the {max_bytes >> 20} MB that can be read: make it smaller.")


def _upright(image: Image.Image, name: str, keep_alpha: bool = False) -> Image.Image:
    """An upright RGB copy without metadata, so that a second call changes nothing; RGBA with `keep_alpha` and alpha.

    Colours are converted to sRGB first, then composited onto white: one who keeps the alpha and composites later gets
    the same.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise anything from OSError to SyntaxError
        raise PictureError(f"{name} is {_DAMAGED}") from error
    try:
        has_alpha = image.has_transparency_data and image.mode[0] not in "IF"  # these are scaled, see `_eight_bits`
        upright = _rgba(image) if has_alpha else _rgb(image)
    except Exception as error:
        raise PictureError(
            f"{name} has colours ({image.mode}) that cannot be read: save it as an RGB picture."
        ) from error
    upright.info.clear()
    with contextlib.suppress(Exception):  # broken EXIF does not make a broken picture
        upright.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(upright, in_place=True)
    return upright if not has_alpha or keep_alpha else on_white(upright)


def _rgb(image: Image.Image) -> Image.Image:
    """An RGB copy of a picture without transparency."""
    if image.mode[0] in "IF":
        return _eight_bits(image)
    return _to_srgb(image.copy() if image.mode == "CMYK" else image.convert("RGB"))


def _rgba(image: Image.Image) -> Image.Image:
    """An RGBA copy, its colours converted without regard to transparency."""
    colours = image.convert("RGBA")
    opaque = colours.convert("RGB")
    opaque.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    upright = _to_srgb(opaque)
    upright.putalpha(colours.getchannel("A"))
    return upright


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits by their range; Pillow's own conversion would clip them."""
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    # Files do not say their range: take the smallest usual one that holds the values.
    peak = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31)
    top = next((limit for limit in ranges if peak <= limit), peak)
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = top
    values *= 255 / top
    np.clip(values, 0, 255, out=values)
    return Image.fromarray(np.round(values, out=values).astype(np.uint8)).convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB by the embedded colour profile, or as Pillow does where there is none or it does not apply."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:  # a TIFF may hold anything there
        with contextlib.suppress(Exception):  # a broken profile is ignored, as browsers do
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")
