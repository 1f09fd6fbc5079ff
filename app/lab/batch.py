"""The Batch page: many pictures, some takes of each, as one group that is followed, cancelled and downloaded."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import streamlit as st
from PIL import Image
from streamlit.navigation.page import StreamlitPage

from app import look
from app.create import session, settings
from app.jobs import next_seed, table
from app.lab import base, grid
from app.lab.bundle import Bundle, Entry
from app.summary import summary
from app.undivided import undivided
from app.upload import LARGEST, LARGEST_ZIP, MOST
from sgm import UserError, VideoRequest
from sgm.amounts import duration

_MOST_TAKES = 16


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="Batch", icon=":material/photo_library:", url_path="batch")


def show_page() -> None:
    group = st.session_state.setdefault("batch_group", st.query_params.get("group", ""))
    st.title("Batch", anchor=False)
    above, fold = st.container(), st.container()
    with above:
        left, right = st.columns([10, 7], gap="large")
        with left:
            st.header("Pictures", anchor=False)
            entries = _choose_pictures()
    with fold:
        request = base.choose_settings(group)
    with right, st.container(key="start"):
        st.header("What it costs", anchor=False)
        _show_start(entries, request)
    grid.keep("batch_group", grid.show_one_of("Batch", group))


def _choose_pictures() -> list[Entry]:
    """Draw the uploader, what was dropped and what of it was left out. Returns the pictures of the batch."""
    bundle: Bundle = st.session_state.setdefault("batch", Bundle())
    if (several := st.session_state.pop("several", 0)) > MOST:
        st.error(f"These are {several:,} files, more than the {MOST} of a batch: drop some of them, or a ZIP.")
    if large := st.session_state.pop("too_large", ""):
        bundle.left_out.append((large, f"A picture may have {LARGEST} MB, a ZIP {LARGEST_ZIP} MB."))
    round_ = st.session_state.setdefault("batch_round", 0)
    files = st.file_uploader(
        "Drop, paste or choose pictures, folders of them, or ZIPs",
        accept_multiple_files=True,
        key=f"batch_upload_{round_}",
        max_upload_size=LARGEST_ZIP,
        help=f"Up to {MOST} pictures of {LARGEST} MB, also in ZIPs of {LARGEST_ZIP} MB.",
    )
    if files:
        with undivided():
            bar = st.progress(0.0)
            for number, file in enumerate(files):
                bundle.add(
                    file.name,
                    file.getvalue(),
                    lambda done, of, number=number, name=file.name: bar.progress(
                        (number + done / of) / len(files), f"Reading {look.plain(name)}"
                    ),
                )
            st.session_state["batch_round"] = round_ + 1  # an uploader without files: these are listed below it
        st.rerun()
    names = [f"{number} · {entry.name}" for number, entry in enumerate(bundle.pictures, 1)]
    without: set[str] = set()
    if names:
        count = f"{len(names)} pictures" if len(names) > 1 else "1 picture"
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.markdown(f"**{count}**", width="content")
            st.button("Take all out", icon=":material/close:", type="tertiary", on_click=_take_all_out)
        with st.container(key="thumbs"):
            st.html(_thumbs(bundle.pictures))
        without = {*st.multiselect("Leave out", names, key="batch_without", placeholder="None: all are taken")}
    if bundle.left_out:
        lines = "\n".join(f"- {look.plain(_said(*left_out))}" for left_out in bundle.left_out[:20])
        more = f"\n- and {len(bundle.left_out) - 20} more" if len(bundle.left_out) > 20 else ""
        st.warning(f"Left out:\n{lines}{more}", icon=":material/broken_image:")
    return [entry for name, entry in zip(names, bundle.pictures, strict=True) if name not in without]


def _said(name: str, reason: str) -> str:
    return reason if name in reason else f"{name}: {reason}"


def _thumbs(entries: Sequence[Entry]) -> str:
    images = (
        f'<img src="{look.inline(entry.thumb)}" alt="{html.escape(entry.name)}" title="{html.escape(entry.name)}">'
        for entry in entries
    )
    return f"<div>{''.join(images)}</div>"


def _take_all_out() -> None:
    st.session_state["batch"] = Bundle()


def _show_start(entries: Sequence[Entry], request: VideoRequest | None) -> None:
    """Draw the number of takes, what the batch costs, and the button that starts it."""
    takes = st.number_input(
        "Takes of each", 1, _MOST_TAKES, key="batch_takes", help="Each take has the next seed.", persist_state="session"
    )
    if not entries or request is None:
        st.caption("Choose pictures first." if not entries else "This cannot run yet: see Settings.")
    else:
        st.caption(look.plain(summary(request)))
        wide, upright = (settings.size_for(request, upright) for upright in (False, True))
        if wide != upright:
            st.caption("Upright pictures {} × {}, others {} × {}.".format(*upright, *wide))
    count = len(entries) * takes
    if count > MOST:
        st.error(f"These are {count:,} clips, more than the {MOST} of a batch: take fewer pictures, or fewer takes.")
    elif count and request:
        clips, each = ("1 clip" if count == 1 else f"{count} clips"), table().seconds_for_all([request] * count)
        st.markdown(f"**{clips}** · about **{duration(each)}**")
    ready = 0 < count <= MOST and request is not None
    if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not ready) and request:
        _start(entries, request, takes)
        st.rerun()


@undivided()
def _start(entries: Sequence[Entry], request: VideoRequest, takes: int) -> None:
    """Queue the batch, to be shown in the next run; or say there why that cannot be."""
    bar = st.progress(0.0)

    def pictures() -> Iterator[tuple[str, Image.Image, list[VideoRequest]]]:
        for number, entry in enumerate(entries):
            bar.progress(number / len(entries), f"Storing picture {number + 1} of {len(entries)}")
            picture = entry.open(keep_alpha=request.fit == "object")
            width, height = settings.size_for(request, upright=picture.height > picture.width)
            first = settings.ready(request).replace(width=width, height=height)
            yield entry.name, picture, [next_seed(first, take) for take in range(takes)]

    try:
        st.session_state["group_started"] = table().submit_batch(pictures(), session.owner())
        _take_all_out()
    except UserError as error:
        grid.fail(str(error))
