"""Input pictures: reading them in many formats, upright and in RGB, and fitting them to a clip's size."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps, UnidentifiedImageError

from sgm.errors import UserError

MAX_BYTES = 20 * 1024**2
MAX_PIXELS = 100_000_000

# An allow-list: some of Pillow's formats call other programs (EPS) or hide the true size in their header (ICO).
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
_ADVICE = "give a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF picture."


class PictureError(UserError):
    """A picture that cannot be used; the message names the file and says what to do."""


def open_picture(
    source: str | Path | bytes | BinaryIO, name: str | None = None, *, keep_alpha: bool = False
) -> Image.Image:
    """Read a picture as an upright RGB image of its own size, whatever its format, mode, depth and orientation.

    Transparent pixels are composited onto white; with `keep_alpha`, the picture is RGBA instead (except greys of 16
    bits). Colours are converted from an embedded profile to sRGB; of an animation the first frame is read. source: a
    path, a file's content or an open binary file. name: the file's name in messages.
    Raises PictureError for a file that is missing, empty, damaged, no picture, larger than MAX_BYTES or of more than
    MAX_PIXELS; the size is checked before any pixel is decoded.
    """
    data, name = _read(source, name)
    if not data:
        raise PictureError(f"{name} is empty (0 bytes): {_ADVICE}")
    if len(data) > MAX_BYTES:
        raise PictureError(f"{name} is larger than the {MAX_BYTES // 1024**2} MB that can be read: make it smaller.")
    too_many = f"more than the {MAX_PIXELS // 10**6} megapixels that can be read: scale it down first."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise PictureError(f"{name} says that it has {too_many}") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture that can be read, or is damaged: {_ADVICE}") from None
    except Exception as error:
        raise PictureError(f"{name} is damaged and cannot be read: {_ADVICE}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(f"{name} has {image.width}×{image.height} pixels, {too_many}")
        if (
            keep_alpha and image.has_transparency_data and image.mode[0] not in "IF"
        ):  # these are scaled, see `_eight_bits`
            return _upright_rgba(image, name)
        return _upright_rgb(image, name)


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
    image = _upright_rgb(image, "The picture")
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


def _read(source: str | Path | bytes | BinaryIO, name: str | None) -> tuple[bytes, str]:
    """The content, at most its first MAX_BYTES + 1 bytes, and the name for messages."""
    if isinstance(source, bytes):
        return source, name or "The picture"
    if not isinstance(source, (str, Path)):
        return source.read(MAX_BYTES + 1), name or Path(str(getattr(source, "name", "The picture"))).name
    path = Path(source)
    name = name or str(path)
    try:
        if path.is_dir():
            raise PictureError(f"{name} is a folder, not a picture: give a picture file.")
        if not path.exists():
            raise PictureError(f"{name} does not exist: check the name of the picture.")
        if not path.is_file():  # a pipe would wait for ever
            raise PictureError(f"{name} is not a regular file: {_ADVICE}")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1), name
    except OSError as error:
        raise PictureError(f"{name} cannot be read ({error.strerror}): check its name and permissions.") from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """An upright RGB copy without metadata, so that a second call changes nothing."""
    try:
        image.load()
    except Exception as error:  # decoders raise anything from OSError to SyntaxError
        raise PictureError(f"{name} is damaged or cut short: fetch or save it again.") from error
    with contextlib.suppress(Exception):  # broken EXIF does not make a broken picture
        image = ImageOps.exif_transpose(image)
    try:
        image = _to_srgb(_flat(image))
    except (ValueError, OSError) as error:
        raise PictureError(
            f"{name} has colours ({image.mode}) that cannot be read: save it as an RGB picture."
        ) from error
    image.info.clear()
    return image


def _upright_rgba(image: Image.Image, name: str) -> Image.Image:
    """An upright RGBA copy without metadata. Colours are converted to sRGB without regard to transparency."""
    try:
        image.load()
        colours = image.convert("RGBA")
        colours.info, alpha = dict(image.info), colours.getchannel("A")
        opaque = colours.convert("RGB")
        opaque.info = dict(image.info)
        opaque.info.pop("transparency", None)
        upright = _to_srgb(opaque).convert("RGB")
        upright.putalpha(alpha)
    except Exception as error:  # decoders raise anything from OSError to SyntaxError
        raise PictureError(f"{name} is damaged or cut short: fetch or save it again.") from error
    with contextlib.suppress(Exception):  # broken EXIF does not make a broken picture
        upright.getexif().update(image.getexif())
        upright = ImageOps.exif_transpose(upright)
    upright.info.clear()
    return upright


def _flat(image: Image.Image) -> Image.Image:
    """A copy with 8 bits a channel, RGB or CMYK, composited onto white; the colour profile is still in `info`."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(colours, mask=colours.getchannel("A"))
        flat.info.update(image.info)
        return flat
    return image.copy() if image.mode == "CMYK" else image.convert("RGB")


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
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile is ignored, as browsers do
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image if image.mode == "RGB" else image.convert("RGB")
