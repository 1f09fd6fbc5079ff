"""The stand's page: a picture, a mood, its number in line, the film. One visit is one Streamlit session at most."""

from __future__ import annotations

import html
import logging
import math

import segno
import streamlit as st

from app import hands, look
from app.create import stills
from app.jobs import Job, table
from app.stand import browser, texts, visits
from app.stand.host import stand
from app.stand.moods import MOODS, request_of
from app.stand.pictures import at_most
from app.stand.texts import Say
from app.upload import LARGEST, read_upload
from sgm import PictureError, UserError, prepare_picture

log = logging.getLogger(__name__)
_ICONS = {"calm": ":material/spa:", "lively": ":material/bolt:", "surprise": ":material/casino:"}


def show_page() -> None:
    """Draw the page of a visitor's stage: start, choice, making, film, failure."""
    say = texts.speaker(_language())
    st.html(browser.style())
    try:
        stage = _show(say)
    except Exception:
        log.exception("The stand's page cannot be drawn.")
        stage = _show_failure(say)
    if stage != "film":
        _show_languages(say)
    # What a visitor's own phone shows stays there.
    rest = 0 if _phone() or (stage == "start" and not st.session_state.get("language")) else stand().rest
    if stage == "making" and not stand().address:
        rest = 0  # without a code, the film would be lost
    browser.attend(stage, rest, _language(), st.session_state.get("token", ""), say)


def _show(say: Say) -> str:
    if "token" not in st.session_state:  # a reload, or a server that was started again
        st.session_state["token"] = st.context.cookies.get(browser.COOKIE, "")
    token = st.session_state["token"]
    job = visits.find(token) if token else None
    if job is None or visits.is_expired(job, stand().keep):
        st.session_state["token"] = ""
        return _show_choice(say) if "picture" in st.session_state else _show_start(say)
    if job.active:
        return _show_making(say, job, token)
    return _show_film(say, job, token) if job.state == "done" else _show_failure(say)


def _show_start(say: Say) -> str:
    with st.container(key="start"):
        st.html(f"<h1>{_text(say, 'title')}</h1><p>{_text(say, 'invitation')}</p>")
        st.file_uploader(  # out of sight: the buttons below open it
            say("own"), key=f"upload_{st.session_state.setdefault('uploads', 0)}", on_change=_open_upload
        )
        st.html(
            f'<div class="sources"><button type="button" data-source="camera">{browser.CAMERA}{_text(say, "take")}</button>'
            f'<button type="button" data-source="file">{browser.FOLDER}{_text(say, "own")}</button></div>'
        )
        if st.session_state.get("problem"):
            st.error(st.session_state["problem"])
        st.html(f"<h2>{_text(say, 'ours')}</h2>")
        with st.container(key="pictures"):
            for number, picture in enumerate(stand().pictures):
                title = look.plain(picture.title(_language()))
                st.button(title, key=f"picture_{number}", on_click=_open_picture, args=(number,), width="stretch")
    return "start"


def _show_choice(say: Say) -> str:
    picture, name = st.session_state["picture"]
    with st.container(key="choice"):
        st.html(f'<div class="frame"><img src="{_frame()}" alt="{html.escape(name or say("picture"))}"></div>')
        st.html(f"<h2>{_text(say, 'how')}</h2>")
        chosen = st.session_state.setdefault("mood", MOODS[0])
        with st.container(key="moods"):
            for mood in MOODS:
                st.button(
                    say(mood),
                    key=f"mood_{mood}",
                    icon=_ICONS[mood],
                    type="primary" if mood == chosen else "secondary",
                    on_click=_set,
                    args=("mood", mood),
                    width="stretch",
                )
        if st.session_state.get("problem"):
            st.info(st.session_state["problem"])
        with st.container(key="go"):
            st.button(say("make"), type="primary", on_click=_make, args=(say,), width="stretch", key="make")
            st.button(say("other"), on_click=_start_again, width="stretch", key="other")
        st.html(f'<p class="small">{_text(say, "privacy", hours=stand().keep)}</p>')
    return "choice"


def _show_making(say: Say, job: Job, token: str) -> str:
    with st.container(key="making"):
        st.html(f'<div class="frame">{stills.preview(job)}</div>')
        _show_progress(job.id, job.state, _language())
        st.html(_code(say, token, "scan_soon"))
    return "making"


@st.fragment(run_every=look.POLL)
def _show_progress(job_id: str, state: str, language: str) -> None:
    """The number in line, or the progress; the whole page is redrawn when the state changes."""
    job, say = table().get(job_id), texts.speaker(language)
    if job is None or job.state != state:
        st.rerun()
    before = table().jobs_before(job_id) if state == "queued" else 0
    left = "" if job.seconds_left is None else texts.duration(say, job.seconds_left)
    if before:
        st.html(f'<div class="number" role="status"><h1>{_text(say, "number")}</h1><b>{before}</b></div>')
        st.html(f"<p>{html.escape(left)}</p>")
    else:
        share = job.fraction if state == "running" else 0.0
        st.html(f'<div role="status"><h1>{_text(say, "making")}</h1></div>')
        st.html(
            f'<div class="progress" role="progressbar" aria-label="{_text(say, "making")}" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}"><i style="width: {100 * share:.1f}%"></i></div>'
            f"<p>{html.escape(left)}</p>"
        )
    hands.show_preview(stills.new_preview(job))


def _show_film(say: Say, job: Job, token: str) -> str:
    with st.container(key="film"):
        video = f'src="/clip/{token}/film.mp4" autoplay loop muted playsinline'
        st.html(
            f'<div class="screen"><video {video} aria-hidden="true" tabindex="-1"></video>'
            f'<video {video} aria-label="{_text(say, "film")}"></video></div>'
        )
        with st.container(key="end"):
            st.html(f"<h1>{_text(say, 'done')}</h1>{_code(say, token, 'scan')}")
            st.button(say("again"), on_click=_start_again, key="again", icon=":material/replay:", width="stretch")
    return "film"


def _show_failure(say: Say) -> str:
    with st.container(key="failure"):
        st.html(f'<div class="number" role="alert"><b>🎬</b><p>{_text(say, "failed")}</p></div>')
        st.button(say("again"), type="primary", on_click=_start_again, key="again", width="stretch")
    return "failure"


def _show_languages(say: Say) -> None:
    with st.container(key="languages", horizontal=True):
        for code, name in texts.languages().items():
            kind = "primary" if code == _language() else "secondary"
            st.button(name, key=f"language_{code}", type=kind, on_click=_set, args=("language", code))


def _code(say: Say, token: str, how: str) -> str:
    """The code of a film, which a phone's own page has as a link; or how the host gets there."""
    if not stand().address:
        return f'<p class="small">{_text(say, "host_needed")}</p>'
    address = f"{stand().address}/clip/{token}"
    drawing = segno.make(address, error="m", micro=False).svg_data_uri(border=2, scale=4, dark="#000", light="#fff")
    return (
        f'<div class="code"><img src="{drawing}" alt="{_text(say, "code")}"><p>{_text(say, how)}</p></div>'
        f'<a class="save" href="{address}" target="_blank">{_text(say, "save")}</a>'
    )


def _frame() -> str:
    """The visitor's picture as the model sees it, as a data URL."""
    picture, _ = st.session_state["picture"]
    if "frame" not in st.session_state:
        frame = prepare_picture(picture, request_of(MOODS[0], picture.size), scale=2)
        st.session_state["frame"] = browser.inline(frame)
    return st.session_state["frame"]


def _open_upload() -> None:
    file = st.session_state[f"upload_{st.session_state['uploads']}"]
    if file is None:
        return
    try:
        picture = read_upload(file.getvalue(), file.name).picture
        if picture is None:
            raise PictureError("It is a clip without its picture.")
    except UserError as error:
        log.info("An upload cannot be read: %s", error)
        _start_again()
        st.session_state["problem"] = texts.speaker(_language())("unreadable", megabytes=LARGEST)
    else:
        _choose(picture, "")


def _open_picture(number: int) -> None:
    try:
        picture = stand().pictures[number]
        _choose(picture.open(), picture.title(_language()))
    except UserError as error:
        log.warning("A picture of the host's cannot be read: %s", error)
        st.session_state["problem"] = texts.speaker(_language())("unreadable", megabytes=LARGEST)


def _choose(picture, name: str) -> None:
    st.session_state["picture"] = at_most(picture), name
    st.session_state["problem"] = ""
    st.session_state.pop("frame", None)


def _make(say: Say) -> None:
    if st.session_state.get("token"):  # the second click of a double click
        return
    picture, name = st.session_state["picture"]
    who = visits.visitor(_phone()) if _phone() else st.session_state.setdefault("visitor", visits.visitor())
    try:
        token = visits.submit(picture, name or "picture", st.session_state["mood"], who, stand().limit)
    except visits.TooMany as error:
        st.session_state["problem"] = say("limit", minutes=error.minutes)
    except UserError as error:
        log.warning("A film cannot be queued: %s", error)
        st.session_state["problem"] = say("failed")
    else:
        _start_again()
        st.session_state["token"] = token


def _start_again() -> None:
    """Forget picture and film; the visitor stays the same until the page is at rest."""
    for key in ("picture", "frame", "mood", "problem"):
        st.session_state.pop(key, None)
    st.session_state["token"] = ""
    st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1


def _set(key: str, value: str) -> None:
    st.session_state[key] = value
    st.session_state["problem"] = ""


def _language() -> str:
    return st.session_state.get("language") or texts.language_of(st.context.locale)


def _phone() -> str:
    """The address of a visitor's own phone; "" at the stand's screen, which all visitors share."""
    return (st.context.ip_address or "") if "Mobi" in (st.context.headers.get("User-Agent") or "") else ""


def _text(say: Say, key: str, **values: object) -> str:
    return html.escape(say(key, **values))
