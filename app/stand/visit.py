"""A visit: what one visitor has chosen so far, in the Streamlit session, which ends when the screen is at rest."""

from __future__ import annotations

import logging
from typing import NamedTuple

import streamlit as st
from PIL import Image

from app.jobs import Job
from app.stand import browser, texts, visits
from app.stand.host import stand
from app.stand.moods import MOODS, request_of
from app.stand.pictures import at_most
from app.stand.texts import Say
from app.undivided import undivided
from app.upload import LARGEST, read_upload
from sgm import PictureError, UserError, prepare_picture

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """A picture. title: of the host's; "" of a visitor's own. frame: what the model sees of it, as a data URL."""

    image: Image.Image
    title: str
    frame: str
    size: tuple[int, int]


def chosen() -> Chosen | None:
    """The picture that the visitor has chosen."""
    return st.session_state.get("picture")


def mood() -> str:
    """The mood that the visitor has chosen; the first one until then."""
    return st.session_state.get("mood", MOODS[0])


def token() -> str:
    """The token of the film that is shown; "" for none. A new session, as after a new start of the server, goes on."""
    return st.session_state.setdefault("token", st.context.cookies.get(browser.COOKIE, ""))


def job() -> Job | None:
    """The job of the film that is shown, as it is now."""
    found = visits.find(token()) if token() else None
    return None if found is None or visits.is_expired(found, stand().keep) else found


def language() -> str:
    """The language that the visitor has chosen; the browser's until then."""
    return st.session_state.get("language") or texts.language_of(st.context.locale)


def problem(say: Say) -> str:
    """What is wrong with what the visitor has asked for, or ""."""
    key, values = st.session_state.get("problem", ("", {}))
    return say(key, **values) if key else ""


def is_fresh() -> bool:
    """Whether nobody has touched anything."""
    return not {"picture", "problem", "language"} & {*st.session_state} and not token()


def phone() -> str:
    """The address of a visitor's own phone; "" at the stand's screen, which all visitors share."""
    return (st.context.ip_address or "") if "Mobi" in (st.context.headers.get("User-Agent") or "") else ""


def uploader() -> str:
    """The key of the uploader, another one for each picture: it keeps its file."""
    return f"upload_{st.session_state.get('uploads', 0)}"


def step() -> str:
    """Another text with each step of the visit."""
    return f"{token()} {uploader()} {chosen() is None}"


def choose_language(code: str) -> None:
    st.session_state["language"] = code


def choose_mood(name: str) -> None:
    st.session_state["mood"] = name


def choose_upload() -> None:
    """Take the picture that has been uploaded."""
    if (file := st.session_state[uploader()]) is None:
        return
    try:
        picture = read_upload(file.getvalue(), file.name).picture
        if picture is None:
            raise PictureError("It is a clip without its picture.")
        _choose(picture, "")
    except UserError as error:
        refuse(error)
    st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1


def choose_picture(number: int) -> None:
    """Take one of the host's pictures."""
    picture = stand().pictures[number]
    try:
        _choose(picture.open(), picture.title(language()))
    except UserError as error:
        refuse(error)


def _choose(image: Image.Image, title: str) -> None:
    image = at_most(image)
    request = request_of(MOODS[0], image.size)
    frame = prepare_picture(image, request, scale=2 if max(request.size) < 500 else 1)
    st.session_state["picture"] = Chosen(image, title, browser.inline(frame), request.size)
    st.session_state.pop("problem", None)


def refuse(error: UserError | None = None) -> None:
    """Say that a picture cannot be read; without an error, that it is too large."""
    if error:
        log.warning("A picture cannot be read: %s", error)
    st.session_state["problem"] = "unreadable", {"megabytes": LARGEST}


@undivided()
def make() -> None:
    """Queue the film."""
    picture = chosen()
    if token() or picture is None:  # the second click of a double click
        return
    who = visits.visitor(phone()) if phone() else st.session_state.setdefault("visitor", visits.visitor())
    name, chosen_mood, limit, made = picture.title or "picture", mood(), stand().limit, visits.new_token()
    try:
        visits.submit(picture.image, name, chosen_mood, who, limit, made)
        st.session_state["token"] = made
        return
    except visits.TooMany as error:
        problem = "limit", {"minutes": error.minutes}
    except Exception as error:  # of any kind: visitors can do nothing about it
        log.warning("A film cannot be queued: %s", error, exc_info=not isinstance(error, UserError))
        problem = "failed", {}
    st.session_state["problem"] = problem


def start_again() -> None:
    """Forget picture and film. Visitor and language stay the same until the screen is at rest."""
    for key in ("picture", "mood", "problem"):
        st.session_state.pop(key, None)
    st.session_state["token"] = ""
