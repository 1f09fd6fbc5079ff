"""NVIDIA's container for Stable Video Diffusion: one request, answered when its clip is done."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.api import asked, schema, stability, work
from app.api.refused import Refused
from app.api.route import route
from app.jobs import Job

PATH = "/v1/genai/stabilityai/stable-video-diffusion"
_LOOK_EVERY = 0.1  # seconds


def shape(refused: Refused) -> Response:
    status = 422 if refused.status == 400 else refused.status
    loc = ["body", *filter(None, [refused.field])]
    return JSONResponse({"detail": [{"type": refused.name, "loc": loc, "msg": refused.message}]}, status)


router = APIRouter(route_class=route(shape, 422), tags=["NVIDIA"])
_body = schema.body(
    {name: schema.schema(field) for name, field in stability.FIELDS.items()}, "image", ("application/json",)
)


@router.post(PATH, openapi_extra=_body, summary="A clip of a picture")
async def make(request: Request) -> Response:
    form = await asked.read(request, "image")
    job = await work.started(_start, form, work.owner_of(request))
    try:
        while job.active:
            await asyncio.sleep(_LOOK_EVERY)
            if await request.is_disconnected():  # nobody waits for it any more
                raise Refused(499, "the client has left")
            job = work.find(job.id, work.owner_of(request))
            work.check_devices()
    finally:
        if job.active:
            with contextlib.suppress(Refused):
                work.cancel_or_delete(job)
    if job.state != "done":
        if job.filtered:
            return JSONResponse({"video": "", "finish_reason": "CONTENT_FILTERED", "seed": job.request.seed})
        raise work.failure(job)
    return await run_sync(_answer, job)


def _start(form: asked.Asked, owner: str) -> Job:
    values = work.hosted_values(form.values, stability.FIELDS)
    picture = asked.opened(form, "image")
    size = min(stability.SIZES, key=lambda size: abs(size[0] / size[1] - picture.width / picture.height))
    return work.submit(work.hosted(values, size), picture, form.name, owner)


def _answer(job: Job) -> Response:
    video = base64.b64encode(work.video(job)).decode()
    return JSONResponse({"video": video, "finish_reason": "SUCCESS", "seed": job.request.seed})
