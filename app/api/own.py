"""This program's own routes: versions, fields, and jobs with their progress, preview, events, clip and recipe."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.api import asked, schema, work
from app.api.refused import Refused
from app.api.route import polled, route
from app.jobs import Job, doing, still
from sgm import (
    ALL_VERSIONS,
    DEFAULT_VERSION,
    RECIPE_TEXTS,
    UserError,
    ViewsRequest,
    all_fields,
    open_picture,
    request_class,
    version_status,
)

_LOOK_EVERY, _SIGN_EVERY = 0.25, 15.0  # seconds: at a job that is followed; a sign of life where nothing changes
_MOST_FOLLOWED = 50
_followed = 0  # event streams that are open; changed by the event loop alone


def shape(refused: Refused) -> Response:
    content = {"name": refused.name, "errors": [refused.message]}
    return JSONResponse(content | ({"field": refused.field} if refused.field else {}), refused.status)


router = APIRouter(route_class=route(shape), tags=["sgm"], prefix="/api")


@router.get("/versions", summary="The model versions, and whether their weights are there")
def versions() -> list[dict[str, Any]]:
    rows = []
    for name, version in ALL_VERSIONS.items():
        status = version_status(name)
        given = "clip" if version.num_views > 1 else "picture"
        values = {key: getattr(version, key) for key in ("title", "frames", "width", "height", "steps", "fps")}
        found = {key: getattr(status, key) for key in ("state", "problem", "command", "licence", "page")}
        rows.append({"name": name, "of": given, "views": version.num_views, **values, **found})
    return rows


@router.get("/fields", summary="Every setting of a clip: range, unit, label, help, and a version's default")
def fields(version: str = DEFAULT_VERSION) -> list[dict[str, Any]]:
    if version not in ALL_VERSIONS:
        raise UserError(f"version must be one of {', '.join(ALL_VERSIONS)}; got {version!r}.")
    return [schema.row(field, version) for field in all_fields().values()]


@router.get("/devices", summary="The devices that make clips, and those that were taken out, with the reason")
def devices() -> list[dict[str, Any]]:
    return [asdict(device) for device in work.the_table().devices()]


def _properties() -> dict[str, Any]:
    version = {"type": "string", "enum": list(ALL_VERSIONS), "default": DEFAULT_VERSION}
    files = {
        "picture": "The picture of the clip; a data URL in JSON.",
        "last": "The picture at which the clip ends; a data URL in JSON.",
        "clip": "Of SV4D's versions, in place of the picture: the clip of an object; a data URL in JSON.",
    }
    binary = {name: {"type": "string", "format": "binary", "description": about} for name, about in files.items()}
    return {"version": version, **binary, **{name: schema.schema(field) for name, field in all_fields().items()}}


@router.post(
    "/jobs",
    openapi_extra=schema.body(_properties(), "", ("multipart/form-data", "application/json")),
    status_code=201,
    summary="Start a clip of a picture, or the views of a clip",
)
async def submit(request: Request) -> JSONResponse:
    form = await asked.read(request, "picture", "clip", "last")
    job = await work.started(_start, form, work.owner_of(request))
    return JSONResponse(state(job), 201, {"location": f"/api/jobs/{job.id}"})


def _start(form: asked.Asked, owner: str) -> Job:
    values, last = form.values, form.files.get("last")
    version = values.pop("version", DEFAULT_VERSION)
    if last or "ends" in values:
        values = {"sampler": "bounded", **({"ends": "last"} if last else {}), **values}
    own, kind = asked.settings(values), request_class(version)
    request = kind(version, **{name: own.get(name, value) for name, value in values.items()})
    given, other = ("clip", "picture") if isinstance(request, ViewsRequest) else ("picture", "clip")
    if other in form.files:
        raise Refused(400, f"{other}: {version} is made of a {given}, not of a {other}", other)
    work.check_ready(version)
    end = open_picture(last, "last", keep_alpha=True) if last else None
    return work.submit(request, asked.opened_for(request, form, given), form.name, owner, end)


@router.get("/jobs", summary="Your clips, the newest first")
def many(request: Request) -> list[dict[str, Any]]:
    return [state(job) for job in work.mine(work.owner_of(request))]


@router.get("/jobs/{id}", summary="How far a clip is")
async def one(id: str, request: Request) -> Response:
    return JSONResponse(state(work.find(id, work.owner_of(request))))


@router.delete("/jobs/{id}", summary="Cancel a clip that is not done, or delete one that is")
def delete(id: str, request: Request) -> dict[str, Any]:
    job = work.find(id, work.owner_of(request))
    return {"id": id, "deleted": work.cancel_or_delete(job)}


@router.get("/jobs/{id}/video", summary="The clip, an MP4; of views, the grid or another of the job's parts")
def video(id: str, request: Request, part: str = "") -> Response:
    return Response(work.video(_done(id, request), part), media_type="video/mp4")


@router.get("/jobs/{id}/preview", summary="A small JPEG: the present estimate or, at the end, the first frame")
def preview(id: str, request: Request) -> Response:
    job = work.find(id, work.owner_of(request))
    if content := job.preview or still(job):
        return Response(content, media_type="image/jpeg", headers={"cache-control": "no-store"})
    raise Refused(404, "there is no picture of this clip")


@router.get("/jobs/{id}/recipe", summary="What made the clip: JSON, or as yaml, command or python")
def recipe(id: str, request: Request, form: Literal["json", "yaml", "command", "python"] = "json") -> Response:
    settings = _done(id, request).settings
    if form == "json":
        return JSONResponse(settings)
    return Response(RECIPE_TEXTS[form](settings), media_type="text/plain")


@router.get("/jobs/{id}/events", summary="Server-sent events of a clip: its state, at each change, until its end")
async def events(id: str, request: Request) -> StreamingResponse:
    if _followed >= _MOST_FOLLOWED:
        raise Refused(429, f"{_MOST_FOLLOWED} clips are followed already: ask for their state instead")
    owner = work.owner_of(request)
    work.find(id, owner)
    return StreamingResponse(_events(id, owner), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(job_id: str, owner: str) -> AsyncIterator[str]:
    global _followed
    before, told = None, 0.0
    _followed += 1
    try:
        while True:
            job = work.find(job_id, owner)
            now = (job.state, job.phase, job.progress, job.preview_number, job.stopping)
            if now != before:
                before, told = now, time.monotonic()
                yield f"event: {'state' if job.active else 'end'}\ndata: {json.dumps(state(job))}\n\n"
            elif time.monotonic() - told > _SIGN_EVERY:
                told = time.monotonic()
                yield ": still here\n\n"
            if not job.active:
                return
            await asyncio.sleep(_LOOK_EVERY)
    except Refused:  # deleted meanwhile
        yield "event: end\ndata: null\n\n"
    finally:
        _followed -= 1


def _done(job_id: str, request: Request) -> Job:
    job = work.find(job_id, work.owner_of(request))
    if job.state != "done":
        raise Refused(409, f"the clip is {job.state}: ask again once it is done")
    return job


def state(job: Job) -> dict[str, Any]:
    """A job for programs. fraction: 0 to 1; seconds_left: about; before: jobs that must end before it starts."""
    progress = job.progress if job.phase == "sample" and job.active else None
    return {
        "id": job.id,
        "state": job.state,
        "name": job.name,
        "created": job.created,
        "ended": job.ended or None,
        "expires": work.expires(job),
        "message": job.message,
        "fraction": 1.0 if job.state == "done" else job.fraction,
        "seconds_left": job.seconds_left if job.active else None,
        "before": work.the_table().jobs_before(job.id),
        "device": job.device,
        "doing": doing(job) if job.state == "running" else "",
        "step": progress.step if progress else None,
        "steps": progress.total if progress else None,
        "preview": job.preview_number,
        "parts": work.parts(job),
        "settings": job.request.settings(),
    }


polls = {"/api/jobs": polled(one, shape)}
