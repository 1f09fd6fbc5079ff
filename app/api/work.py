"""The one place where a request to the API becomes a job, and a job the state that is told of it."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from PIL import Image
from starlette.requests import Request

from app.api import asked
from app.api.refused import Refused
from app.jobs import Input, Job, Table, table
from app.jobs.record import ID
from sgm import DEFAULT_VERSION, VERSIONS, Field, UserError, VideoRequest, best_version, version_status

KEPT = 24 * 3600  # seconds that a result can be fetched after its end; its files stay in the History
LONGEST_QUEUE, LONGEST_OF_ONE = 64, 16  # jobs that are not done: of all programs, of one key
_one = CapacityLimiter(1)


def the_table() -> Table:
    """The table of jobs, which the server has opened. Raises Refused 503 where it cannot be."""
    try:
        return table()
    except UserError as error:
        raise Refused(503, str(error)) from error


async def started(start: Callable[[asked.Asked, str], Job], form: asked.Asked, owner: str) -> Job:
    """Call a function that reads a picture and queues a job in a thread, one at a time: the event loop goes on.

    Raises Refused 503 or 429, before anything is read, where no job can be queued.
    """
    check_devices()
    check_room(owner)
    return await run_sync(start, form, owner, limiter=_one)


def check_devices() -> None:
    """Raise Refused 503 where no device is left to make clips."""
    if none_left := the_table().none_left():
        raise Refused(503, none_left)


def check_room(owner: str) -> None:
    """Raise Refused 429 where the queue is full."""
    waiting = [job.owner for job in the_table().jobs() if job.active and job.by_api]
    if len(waiting) >= LONGEST_QUEUE or waiting.count(owner) >= LONGEST_OF_ONE:
        raise Refused(429, f"{len(waiting)} jobs wait already: ask again later", headers={"retry-after": "10"})


def check_ready(version: str) -> None:
    """Raise Refused 422 for a version without weights. To be called before a picture is read."""
    status = version_status(version)
    if status.state != "ready":
        how = status.problem or f"run {status.command}"
        raise Refused(422, f"The weights of {version} are {status.state}: {how}", "model")


def submit(request: VideoRequest, picture: Input, name: str, owner: str, last: Image.Image | None = None) -> Job:
    """Queue a job. Raises Refused 503 or 429 where it cannot be, 422 for a version without weights."""
    check_devices()
    check_room(owner)
    check_ready(request.version)
    return the_table().submit(request, picture, name, owner, last=last)


def hosted_values(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Our values for those of a hosted service: `seed`, `cfg_scale`, `motion_bucket_id`, and our own fields by name.

    fields: the service's. Other values are left alone, so that old clients go on. Raises Refused 400 or UserError.
    """
    seed, guidance, motion_bucket = (asked.number(values, field) for field in fields.values())
    own = asked.settings({name: value for name, value in values.items() if name not in fields})
    if guidance is not None:
        own = {"max_guidance": guidance, "min_guidance": min(1.0, guidance)} | own
    return own | {"seed": seed or asked.random_seed(), "motion_bucket": motion_bucket}


def hosted(values: Mapping[str, Any], size: tuple[int, int]) -> VideoRequest:
    """The request that a client of a hosted service means: the best version that is ready, of a picture's size.

    svd_tiny works at its own size, in the shape nearest to the asked one.
    """
    version = best_version()
    width, height = nearest_size(version, size) if version == DEFAULT_VERSION else size
    return VideoRequest.fitting(version, {"width": width, "height": height} | dict(values))


def nearest_size(version: str, shape: tuple[int, int]) -> tuple[int, int]:
    """The size of about a version's own area, in its multiples, whose shape is nearest to (width, height)."""
    model = VERSIONS[version]
    area, ratio, unit = model.width * model.height, shape[0] / shape[1], model.multiple
    widths = range(unit, area // unit + 1, unit)
    sizes = [(w, max(unit, n * unit)) for w in widths for n in (area // w // unit, area // w // unit + 1)]

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / ratio)) + abs(math.log(size[0] * size[1] / area))

    return min(sizes, key=distance)


def find(job_id: str, owner: str) -> Job:
    """A job of an owner. Raises Refused 404 for an unknown one, another's, and one whose result has expired.

    Takes less time than a thread's turn while a clip is made, so that the event loop calls it itself.
    """
    job = the_table().get(job_id) if ID.fullmatch(job_id) else None
    if job is None or not hmac.compare_digest(job.owner, owner) or is_expired(job):
        raise Refused(404, "the generation either does not exist or has expired", "id")
    return job


def mine(owner: str) -> list[Job]:
    """An owner's jobs that have not expired, the newest first."""
    return [job for job in the_table().jobs() if job.owner == owner and not is_expired(job)]


def cancel_or_delete(job: Job) -> bool:
    """Cancel a job that is not done, or delete one that has ended. Returns whether it was deleted."""
    if job.active:
        the_table().cancel(job.id)
        return False
    try:
        the_table().delete(job.id)
    except OSError as error:
        raise UserError(f"The clip cannot be deleted: {error.strerror or error}.") from error
    return True


def parts(job: Job) -> list[str]:
    """The names of the videos that a clip's views are: "grid", "input", "view-1", …, "walk"; [] of a single clip."""
    return ["grid", *(path.stem for path in job.parts)] if job.parts else []


def video(job: Job, part: str = "") -> bytes:
    """A finished job's MP4; of a clip's views that of a part, the grid unless named.

    Raises Refused 404 for another part, 500 where there is no MP4.
    """
    if part and part not in (known := parts(job)):
        raise Refused(404, f"part: must be one of {', '.join(known)}" if known else "part: this clip has none", "part")
    if part and part != "grid":
        path = job.folder / f"{part}.mp4"
        if not job.has(path):
            raise Refused(500, f"{part} could not be written, or is damaged")
        return path.read_bytes()
    if content := the_table().video(job):
        return content
    raise Refused(500, "the clip could not be written as a video")


def is_expired(job: Job) -> bool:
    return not job.active and time.time() > (expires(job) or 0)


def expires(job: Job) -> float | None:
    """When a job's result expires, seconds since 1970; None while it is not done."""
    return None if job.active else (job.ended or job.created) + KEPT


def failure(job: Job) -> Refused:
    """What is answered of an ended job without a clip: 403 where the filter withholds it, else 500."""
    if job.filtered:
        return Refused(403, what_went_wrong(job), headers={"finish-reason": "CONTENT_FILTERED"})
    return Refused(500, what_went_wrong(job))


def what_went_wrong(job: Job) -> str:
    """Why an ended job has no clip, for people."""
    return job.message or f"the generation was {job.state}"


def retry_after(job: Job) -> dict[str, str]:
    """The header that says when to look again."""
    return {"retry-after": str(min(10, max(1, round((job.seconds_left or 1) / 4))))}


def long_id(job_id: str) -> str:
    """A job's id as 64 hexadecimal digits, from which `short_id` has it back."""
    digits = job_id.replace("-", "")
    return digits + hashlib.sha256(digits.encode()).hexdigest()[: 64 - len(digits)]


def short_id(text: str) -> str:
    """The id that `long_id` was given; "" for another text."""
    job_id = f"{text[:8]}-{text[8:14]}-{text[14:22]}"
    return job_id if ID.fullmatch(job_id) and long_id(job_id) == text else ""


def owner_of(request: Request) -> str:
    """Who asks, as `keys.admit` found."""
    return request.state.owner
