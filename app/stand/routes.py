"""What the stand's server answers beside the page: films for phones and the host's pictures. Does not import Streamlit.

All else that a browser asks for, such as the pages of other programs here, leads to the start.
"""

from __future__ import annotations

import html

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from app.jobs import Job, table
from app.stand import visits
from app.stand.host import stand
from app.stand.texts import language_of, speaker
from sgm import PictureError, UserError

_LOOK_AGAIN = 3  # seconds
_PRIVATE = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex",
    "content-security-policy": "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'",
}
_STYLE = """:root { color-scheme: light dark; font: 18px/1.5 system-ui, sans-serif; }
body { margin: 0; min-height: 100dvh; display: grid; align-content: center; justify-items: center; gap: 1.25rem;
  padding: 1.25rem; box-sizing: border-box; text-align: center; background: light-dark(#fff, #161716);
  color: light-dark(#262624, #ecece8); }
h1 { font-size: 1.6rem; margin: 0; }
p { margin: 0; max-width: 26rem; }
video { width: 100%; height: auto; max-width: 60rem; max-height: 65dvh; border-radius: 0.75rem; background: #000; }
a { display: block; box-sizing: border-box; width: 100%; max-width: 26rem; padding: 0.9rem; border-radius: 0.75rem;
  background: #0b6e6b; color: #fff; font-weight: 600; text-decoration: none; }
i { width: 3rem; aspect-ratio: 1; border-radius: 50%; border: 0.35rem solid light-dark(#d9d9d4, #3c3f3c);
  border-top-color: #1a9a94; animation: turn 1s linear infinite; }
@keyframes turn { to { rotate: 1turn; } }"""


def _page(request: Request) -> Response:
    """The page that a visitor's phone opens."""
    language = language_of(request.headers.get("accept-language"))
    say, token = speaker(language), request.path_params["token"]
    status, job = _found(token)
    refresh, hours = "", stand().keep
    if job is None:
        title, body = "🎬", f"<p>{html.escape(say('gone', hours=hours))}</p>"
    elif job.active:
        refresh = f'<meta http-equiv="refresh" content="{_LOOK_AGAIN}">'
        title, body = say("film"), f"<i></i><p>{html.escape(say('soon'))}</p>"
    elif job.state != "done":
        title, body = "🎬", f"<p>{html.escape(say('failed'))}</p>"
    else:
        title = say("film")
        video, (width, height) = f"/clip/{token}/film.mp4", job.request.size
        body = f"""<h1>{html.escape(say("done"))}</h1>
<video src="{video}" width="{width}" height="{height}" autoplay loop muted playsinline controls></video>
<a href="{video}" download="film.mp4">{html.escape(say("save"))}</a>
<p>{html.escape(say("keep", hours=hours))}</p>"""
    return HTMLResponse(
        f"""<!doctype html><html lang="{language}"><meta charset="utf-8">{refresh}
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{_STYLE}</style><main style="display: contents">{body}</main></html>""",
        status,
        _PRIVATE,
    )


def _film(request: Request) -> Response:
    """A film's MP4, also in parts, as phones ask for it."""
    status, job = _found(request.path_params["token"])
    if job is None or job.state != "done":
        return PlainTextResponse("There is no film here.\n", max(status, 404), _PRIVATE)
    if job.has(job.film):
        return FileResponse(job.film, media_type="video/mp4", headers=_PRIVATE)
    try:
        return Response(table().video(job), media_type="video/mp4", headers=_PRIVATE)
    except UserError as error:
        return PlainTextResponse(f"{error}\n", 404, _PRIVATE)


def _found(token: str) -> tuple[int, Job | None]:
    """The status of an answer about a film, and its job unless it is unknown or has expired."""
    job = visits.find(token)
    if job is None:
        return 404, None
    return (410, None) if visits.is_expired(job, stand().keep) else (200, job)


def _picture(request: Request) -> Response:
    try:
        content = {str(i): picture for i, picture in enumerate(stand().pictures)}[request.path_params["number"]].small
    except (KeyError, PictureError):
        return PlainTextResponse("There is no picture here.\n", 404)
    return Response(content, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})


def _to_start(request: Request) -> Response:
    return RedirectResponse("/", 303) if request.method in ("GET", "HEAD") else PlainTextResponse("Not here.\n", 404)


def application() -> Starlette:
    """The routes as an ASGI application."""
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[
            Route("/clip/{token}", _page),
            Route("/clip/{token}/film.mp4", _film),
            Route("/picture/{number}", _picture),
            Route("/{path:path}", _to_start, methods=methods),
        ]
    )
