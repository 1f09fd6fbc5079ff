"""What a request asks for: the values of its form or JSON, and its picture, checked before any job is made of them."""

from __future__ import annotations

import base64
import binascii
import io
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

from app.api import bounds
from app.api.refused import Refused
from app.jobs import Input
from sgm import ALL_VERSIONS, Field, VideoRequest, ViewsRequest, all_fields, open_clip, open_picture, printable


@dataclass
class Asked:
    """values: by their names: text, as a form has them, or of JSON's types. files: by their names, their contents.

    name: of what the clip is made of, for people.
    """

    values: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    name: str = "picture"


async def read(request: Request, *names: str) -> Asked:
    """The values of a body, multipart or JSON. names: of those that are files, or data URLs.

    Raises Refused 400 for a body that is neither, and for a form that holds a value twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.form(max_files=len(names), max_fields=100, max_part_size=bounds.LARGEST)
        asked = Asked({name: value for name, value in form.items() if isinstance(value, str)})
        for name in reversed(names):  # the first one's name stays
            if isinstance(file := form.get(name), UploadFile):
                asked.files[name], asked.name = await file.read(), printable(file.filename or name, 100)
        await form.close()
        counts = Counter(name for name, _ in form.multi_items())
        if twice := next((printable(name) for name, count in counts.items() if count > 1), ""):
            raise Refused(400, f"{twice}: is there more than once", twice)
    elif kind == "application/json":
        asked = Asked(await run_sync(_json, await request.body()))
    else:
        raise Refused(400, f"content-type: must be multipart/form-data or application/json; got {printable(kind)!r}")
    for name in names:
        address = asked.values.pop(f"{name}[image_url]", None) or asked.values.pop(name, None)
        if isinstance(address, dict):  # as the `openai` package has it
            address = address.get("image_url")
        if address and name not in asked.files:
            asked.files[name] = await run_sync(_decoded, address, name)
    return asked


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON that can be read") from None
    if not isinstance(content, dict):
        raise Refused(400, "the body must be a JSON object")
    return content


def _decoded(address: Any, name: str) -> bytes:
    """The content of a data URL, or of plain base64, perhaps in lines, as MIME and `base64` write it."""
    head, comma, data = address.partition(",") if isinstance(address, str) else ("", "", "")
    if (comma and not (head.startswith("data:") and head.endswith(";base64"))) or not (comma or head):
        raise Refused(400, f"{name}: must be a file, or a data URL such as data:image/png;base64,…", name)
    try:
        return base64.b64decode("".join((data if comma else head).split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name}: is no base64; an address cannot be fetched, give the file itself", name) from None


def opened(asked: Asked, name: str, sizes: Mapping[tuple[int, int], str] | None = None) -> Image.Image:
    """The picture. sizes: those that are allowed, of JPEG and PNG alone. Raises Refused 400, or PictureError.

    name: of its field. To be called by `work.started`: the largest picture takes a gigabyte while it is read.
    """
    content = _content(asked, name)
    if sizes is not None:
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                size = image.size  # as stored: turned upright, it is another of those that are allowed
        except Exception:  # Pillow raises many kinds for damaged files
            raise Refused(400, f"{name}: must be a JPEG or PNG picture", name) from None
        if size not in sizes:
            raise Refused(400, f"{name}: must be {' or '.join(sizes.values())} pixels; got {size[0]}x{size[1]}", name)
    return open_picture(content, asked.name, keep_alpha=True)


def opened_for(request: VideoRequest, asked: Asked, name: str) -> Input:
    """What a request is made of: a picture, as `opened` gives it, or the frames of a clip. name: of its field.

    Raises what can be known of a clip without removing its background.
    """
    if not isinstance(request, ViewsRequest):
        return opened(asked, name)
    frames = open_clip(_content(asked, name), request.frames, name=asked.name).frames
    request.family.check_clip(frames, request)
    return frames


def _content(asked: Asked, name: str) -> bytes:
    """A file's content. Raises Refused 400 where there is none."""
    if content := asked.files.get(name):
        return content
    raise Refused(400, f"{name}: is required", name)


def number(values: Mapping[str, Any], field: Field) -> Any:
    """The value of a contract's own number, or its default. Raises Refused 400."""
    value = values.get(field.name)
    if value in (None, ""):
        return field.default
    try:
        return field.check(field.parse(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise Refused(400, f"{field.name}: {str(error).removeprefix(field.name).strip()}", field.name) from None


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of our own fields, by their names. Raises UserError for text that is no number."""
    fields = all_fields()
    return {
        name: fields[name].parse(value) if isinstance(value, str) else value
        for name, value in values.items()
        if name in fields and value is not None
    }


def random_seed() -> int:
    """A seed, but 0: other APIs ask for a random one with it."""
    return 1 + secrets.randbelow(int(all_fields()["seed"].high))


def version_named(name: Any) -> Any:
    """A version's name, given it or that of its repository on the Hugging Face hub."""
    return next((own for own, version in ALL_VERSIONS.items() if name and name == version.repo), name)
