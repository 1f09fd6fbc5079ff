"""The stand's page: a picture, a mood, the number in line, the film."""

from __future__ import annotations

import html
import logging

import segno
import streamlit as st

from app import look
from app.create import stills
from app.jobs import Job, table
from app.stand import browser, texts, visit
from app.stand.host import stand
from app.stand.moods import MOODS
from app.stand.texts import Say

_ICONS = {"calm": ":material/spa:", "lively": ":material/bolt:", "surprise": ":material/casino:"}
_SOURCES = (("camera", "photo_camera", "take"), ("file", "image", "own"))


def show_page() -> None:
    """Draw the stage that the visit is at: start, choice, making, film or failure."""
    say = texts.speaker(visit.language())
    st.html(browser.style())
    try:
        stage = _show_stage(say)
    except Exception:
        logging.getLogger(__name__).exception("The stand's page cannot be drawn.")
        stage = _show_failure(say)
    if stage != "film":
        _show_languages(say)
    # What a visitor's own phone shows stays there; without a code, a film that is being made would be lost.
    stays = visit.is_fresh() or visit.phone() or (stage == "making" and not stand().address)
    rest = 0 if stays else stand().rest
    browser.attend(f"{stage} {visit.step()}", rest, visit.language(), visit.token(), say, visit.refuse)


def _show_stage(say: Say) -> str:
    job, picture = visit.job(), visit.chosen()
    if job is None:
        return _show_choice(say, picture) if picture else _show_start(say)
    if job.active:
        return _show_making(say, job)
    return _show_film(say) if job.state == "done" else _show_failure(say)


def _show_start(say: Say) -> str:
    with st.container(key="stage_start"):
        st.html(f"<h1>{_text(say, 'title')}</h1><p>{_text(say, 'invitation')}</p>")
        # Out of sight: the buttons below open it.
        st.file_uploader(say("own"), key=visit.uploader(), on_change=visit.choose_upload)
        buttons = (
            f'<button type="button" data-source="{source}"><span translate="no" aria-hidden="true">{icon}</span>'
            f"{_text(say, key)}</button>"
            for source, icon, key in _SOURCES
        )
        st.html(f'<div class="sources">{"".join(buttons)}</div>')
        _show_problem(say)
        st.html(f"<h2>{_text(say, 'ours')}</h2>")
        with st.container(key="pictures"):
            for number, picture in enumerate(stand().pictures):
                title = look.plain(picture.title(visit.language()))
                st.button(title, key=f"picture_{number}", on_click=visit.choose_picture, args=(number,))
    return "start"


def _show_choice(say: Say, picture: visit.Chosen) -> str:
    with st.container(key="stage_choice"):
        about = html.escape(picture.title or say("picture"))
        st.html(_framed(f'<img src="{picture.frame}" alt="{about}">', picture.size))
        st.html(f"<h1>{_text(say, 'how')}</h1>")
        with st.container(key="moods"):
            for mood in MOODS:
                kind = "primary" if mood == visit.mood() else "secondary"
                key, args = f"mood_{mood}", (mood,)
                st.button(say(mood), key=key, icon=_ICONS[mood], type=kind, on_click=visit.choose_mood, args=args)
        _show_problem(say)
        st.button(say("make"), key="make", type="primary", on_click=visit.make)
        st.button(say("other"), key="other", type="tertiary", on_click=visit.start_again)
        st.html(f'<p class="small">{_text(say, "privacy", hours=stand().keep)}</p>')
    return "choice"


def _show_making(say: Say, job: Job) -> str:
    with st.container(key="stage_making"):
        st.html(_framed(stills.preview(job), job.request.size))
        _show_progress(job.id, job.state, visit.language())
        st.html(_code(say, "scan_soon"))
    return "making"


@st.fragment(run_every=look.POLL)
def _show_progress(job_id: str, state: str, language: str) -> None:
    """The number in line, or the progress; the whole page is redrawn when the state changes."""
    job, say = table().get(job_id), texts.speaker(language)
    if job is None or job.state != state:
        st.rerun()
    before, making = table().jobs_before(job_id), _text(say, "making")
    if before:
        st.html(f'<div class="number" role="status"><h1>{_text(say, "number")}</h1><b>{before}</b></div>')
    else:
        share = f"{100 * job.fraction if state == 'running' else 0:.0f}"
        st.html(f'<h1 role="status">{making}</h1>')
        st.html(
            f'<div class="progress" role="progressbar" aria-label="{making}" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{share}"><i style="width: {share}%"></i></div>'
        )
    left = "" if job.seconds_left is None else texts.duration(say, job.seconds_left)
    st.html(f"<p>{html.escape(left)}</p>")
    browser.show_preview(job)


def _show_film(say: Say) -> str:
    with st.container(key="stage_film"):
        video = f'<video src="/clip/{visit.token()}/film.mp4" autoplay loop muted playsinline'
        backdrop = f'{video} aria-hidden="true" tabindex="-1"></video>'
        st.html(f'<div class="screen">{backdrop}{video} aria-label="{_text(say, "film")}"></video></div>')
        with st.container(key="end"):
            st.html(f"<h1>{_text(say, 'done')}</h1>{_code(say, 'scan')}")
            st.button(say("again"), key="again", icon=":material/replay:", on_click=visit.start_again)
    return "film"


def _show_failure(say: Say) -> str:
    with st.container(key="stage_failure"):
        st.html(f'<h1 role="alert">{_text(say, "failed")}</h1>')
        st.button(say("again"), key="again", type="primary", icon=":material/replay:", on_click=visit.start_again)
    return "failure"


def _show_problem(say: Say) -> None:
    if problem := visit.problem(say):
        st.warning(look.plain(problem))


def _show_languages(say: Say) -> None:
    with st.container(key="languages", horizontal=True):
        for code, name in texts.languages().items():
            kind = "primary" if code == visit.language() else "secondary"
            st.button(name, key=f"language_{code}", type=kind, on_click=visit.choose_language, args=(code,))


def _code(say: Say, how: str) -> str:
    """The code of the film, beside it a link, which small screens show: a phone cannot scan itself."""
    address = f"{stand().address}/clip/{visit.token()}"
    save = f'<a class="save" href="/clip/{visit.token()}" target="_blank">{_text(say, "save")}</a>'
    if not stand().address:
        return f'<p class="small">{_text(say, "host_needed")}</p>'
    drawing = segno.make_qr(address, error="m").svg_data_uri(border=3, light="#fff")
    return f'<div class="code"><img src="{drawing}" alt="{_text(say, "code")}"><p>{_text(say, how)}</p></div>{save}'


def _framed(picture: str, size: tuple[int, int]) -> str:
    return f'<div class="frame" style="--ratio: {size[0] / size[1]:.3f}">{picture}</div>'


def _text(say: Say, key: str, **values: object) -> str:
    return html.escape(say(key, **values))
