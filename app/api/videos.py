"""`/v1/videos`, as OpenAI's clients and self-hosted servers speak it: start, look, fetch, delete."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.api import asked, schema, work
from app.api.refused import Refused
from app.api.route import polled, route
from app.jobs import Job, still
from app.jobs.record import ID
from sgm import ALL_VERSIONS, VideoRequest, all_fields, best_version, request_class

_OTHER_NAMES = {  # other servers' -> ours
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "motion_bucket_id": "motion_bucket",
    "noise_aug_strength": "cond_aug",
    "decode_chunk_size": "decode_chunk",
}
_STATES = {
    "queued": "queued",
    "running": "in_progress",
    "done": "completed",
    "failed": "failed",
    "interrupted": "failed",
    "cancelled": "cancelled",
}
_IGNORED = "prompt was ignored: this model makes a clip of a picture alone"


def shape(refused: Refused) -> Response:
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": refused.message, "type": kind, "param": refused.field or None, "code": refused.name}
    return JSONResponse({"error": error}, refused.status)


router = APIRouter(route_class=route(shape), tags=["OpenAI's videos"], prefix="/v1/videos")


def _properties() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "model": text | {"description": "A version, or its repository on the Hugging Face hub. Absent: the best one."},
        "prompt": text | {"description": "Accepted and ignored."},
        "seconds": text | {"description": "The clip's length; with `fps`, it says how many frames there are."},
        "size": text | {"description": "Width and height, as in 1024x576."},
        **{name: schema.schema(field) for name, field in all_fields().items()},
        **{name: {"description": f"`{own}` by another name.", "type": "number"} for name, own in _OTHER_NAMES.items()},
    }


@router.post(
    "",
    openapi_extra=schema.body(_properties(), "input_reference", ("multipart/form-data", "application/json")),
    summary="Start a clip of a picture or, of SV4D's versions, the views of a clip",
)
async def create(request: Request) -> JSONResponse:
    form = await asked.read(request, "input_reference")
    prompt = form.values.pop("prompt", None)
    job = await work.started(_start, form, work.owner_of(request))
    return JSONResponse(state(job) | ({"prompt": None, "note": _IGNORED} if prompt else {}))


def _start(form: asked.Asked, owner: str) -> Job:
    request = _request(form.values)
    work.check_ready(request.version)
    return work.submit(request, asked.opened_for(request, form, "input_reference"), form.name, owner)


def _request(values: dict[str, Any]) -> VideoRequest:
    """The request that the values mean. Raises Refused 400 or UserError."""
    model, seconds, size = (values.pop(name, None) for name in ("model", "seconds", "size"))
    named = {_OTHER_NAMES.get(name, name): value for name, value in values.items()}
    own = asked.settings(named)
    own |= {name: value for name, value in named.items() if name not in own and value is not None}  # which are refused
    version = asked.version_named(model or own.pop("version", None) or best_version())
    if isinstance(version, str) and version in ALL_VERSIONS and seconds not in (None, "") and "frames" not in own:
        own["frames"] = _frames(seconds, own.get("fps", ALL_VERSIONS[version].fps))
    if size:
        if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(size))):
            raise Refused(400, f"size: must be width and height, as in 1024x576; got {str(size)[:40]!r}", "size")
        own = {"width": int(found[1]), "height": int(found[2])} | own
    return request_class(version)(version, **{"seed": asked.random_seed()} | own)


def _frames(seconds: Any, fps: Any) -> int:
    """How many frames so many seconds have. Of an `fps` that is no number, which is refused later, 1."""
    try:
        length = min(float(seconds), 1e6)
    except (TypeError, ValueError):
        length = 0.0
    if not length > 0:
        raise Refused(400, f"seconds: must be a number above 0; got {str(seconds)[:40]!r}", "seconds")
    # Of a whole number of 400 digits even `math.isfinite` fails.
    return max(1, round(length * fps)) if isinstance(fps, (int, float)) and abs(fps) < 1e6 else 1


@router.get("", summary="Your clips, the newest first")
def many(
    request: Request, limit: int = Query(20, ge=1, le=100), after: str = "", order: Literal["asc", "desc"] = "desc"
) -> dict[str, Any]:
    jobs = work.mine(work.owner_of(request))[:: 1 if order == "desc" else -1]
    start = place_after(after, [_id(job) for job in jobs], order) if after else 0
    page = [state(job) for job in jobs[start : start + limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": start + limit < len(jobs)}


def place_after(after: str, ids: list[str], order: str) -> int:
    """Where in a list the clips after one begin, which may have been deleted since: by the second in its id."""
    if after in ids:
        return ids.index(after) + 1
    if not ID.fullmatch(after.removeprefix("video_")):
        raise Refused(400, f"after: must be the id of a clip; got {after[:40]!r}", "after")
    second = slice(len("video_20240101-120000"))
    return sum((id[second] < after[second]) if order == "asc" else (id[second] > after[second]) for id in ids)


@router.get("/{id}", summary="How far a clip is")
async def one(id: str, request: Request) -> Response:
    return JSONResponse(state(_find(id, request)))


@router.get("/{id}/content", summary="The clip, an MP4, or a small picture of it; of views, any part")
def content(id: str, request: Request, variant: Literal["video", "thumbnail"] = "video", part: str = "") -> Response:
    job = _find(id, request)
    if job.state != "done":
        if job.filtered:
            raise work.failure(job)
        raise Refused(409, f"the clip is {_STATES[job.state]}: its content is there once it is completed", "id")
    if variant == "thumbnail":
        return Response(still(job), media_type="image/jpeg")
    return Response(work.video(job, part), media_type="video/mp4")


@router.delete("/{id}", summary="Cancel a clip that is not done, or delete one that is")
def delete(id: str, request: Request) -> dict[str, Any]:
    job = _find(id, request)
    return {"id": id, "object": "video.deleted", "deleted": work.cancel_or_delete(job)}


def _find(video_id: str, request: Request) -> Job:
    return work.find(video_id.removeprefix("video_"), work.owner_of(request))


def _id(job: Job) -> str:
    return f"video_{job.id}"


def state(job: Job) -> dict[str, Any]:
    """A job as these clients know it."""
    asked_for, ended, expires = job.request, job.ended, work.expires(job)
    wrong = job.state in ("failed", "interrupted")
    return {
        "id": _id(job),
        "object": "video",
        "model": asked_for.version,
        "status": _STATES[job.state],
        "progress": 100 if job.state == "done" else int(100 * job.fraction),
        "created_at": int(job.created),
        "completed_at": int(ended) if ended and job.state == "done" else None,
        "expires_at": int(expires) if expires else None,
        "size": f"{asked_for.width}x{asked_for.height}",
        "seconds": f"{asked_for.frames / asked_for.fps:.4g}",
        "seed": asked_for.seed,
        "error": {
            "code": "content_filtered" if job.filtered else "generation_failed",
            "message": work.what_went_wrong(job),
        }
        if wrong
        else None,
    }


polls = {"/v1/videos": polled(one, shape)}
