"""Stability's hosted image-to-video service, which ended in July 2025, as its clients speak it."""

from __future__ import annotations

import base64
import secrets

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.api import asked, schema, work
from app.api.refused import Refused
from app.api.route import polled, route
from app.jobs import Job
from sgm import Field

SIZES = {(1024, 576): "1024x576", (576, 1024): "576x1024", (768, 768): "768x768"}
FIELDS = {
    field.name: field
    for field in (
        Field("seed", int, "Seed", "0 or absent: a random one.", 0, 4294967294, 0),
        Field("cfg_scale", float, "Guidance", "How closely the last frame is held to the picture.", 0, 10, 1.8),
        Field("motion_bucket_id", int, "Motion", "How much moves.", 1, 255, 127),
    )
}


def shape(refused: Refused) -> Response:
    message = f"id: {refused.message}" if refused.field == "id" else refused.message
    content = {"id": secrets.token_hex(16), "name": refused.name, "errors": [message]}
    return JSONResponse(content, refused.status)


router = APIRouter(route_class=route(shape), tags=["Stability AI"])
_body = schema.body({name: schema.schema(field) for name, field in FIELDS.items()}, "image")


@router.post("/v2beta/image-to-video", openapi_extra=_body, summary="Start a clip of a picture")
@router.post("/v2alpha/generation/image-to-video", openapi_extra=_body, summary="The same, as older clients ask")
async def start(request: Request) -> JSONResponse:
    form = await asked.read(request, "image")
    job = await work.started(_start, form, work.owner_of(request))
    return JSONResponse({"id": work.long_id(job.id)})


def _start(form: asked.Asked, owner: str) -> Job:
    values = work.hosted_values(form.values, FIELDS)
    picture = asked.opened(form, "image", SIZES)
    return work.submit(work.hosted(values, picture.size), picture, form.name, owner)


@router.get("/v2beta/image-to-video/result/{id}", summary="The clip, once it is done")
@router.get("/v2alpha/generation/image-to-video/result/{id}", summary="The same, as older clients ask")
async def result(id: str, request: Request) -> Response:
    job = work.find(work.short_id(id), work.owner_of(request))
    if job.active:
        return JSONResponse({"id": id, "status": "in-progress"}, 202, work.retry_after(job))
    if job.state != "done":
        raise work.failure(job)
    return await run_sync(_answer, job, "application/json" in request.headers.get("accept", ""))


def _answer(job: Job, as_json: bool) -> Response:
    video, seed = work.video(job), job.request.seed
    if as_json:
        content = {"video": base64.b64encode(video).decode(), "finish_reason": "SUCCESS", "seed": seed}
        return JSONResponse(content, media_type="application/json; type=video/mp4")
    return Response(video, media_type="video/mp4", headers={"finish-reason": "SUCCESS", "seed": str(seed)})


polls = dict.fromkeys(
    ("/v2beta/image-to-video/result", "/v2alpha/generation/image-to-video/result"), polled(result, shape)
)
