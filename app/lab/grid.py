"""The grid of a group of clips that the queue makes: it fills while it is watched, and plays what is there in step."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import streamlit as st

from app import look, places
from app.jobs import Job, doing, table
from app.lab import chosen, download, player
from app.lab.scores import is_known, scores_of
from sgm import Axis, Cell, ClipGrid, Page, UserError, encode_video, grid_pages
from sgm.amounts import duration

_STATES = {"failed": "Not made", "cancelled": "Cancelled", "interrupted": "Interrupted", "queued": "Waiting"}


def show_one_of(
    kind: str,
    group: str,
    actions: Sequence[player.Action] = (),
    does: Mapping[str, Callable[[str], object]] | None = None,
) -> str:
    """Draw what has failed and one group's grid, with a choice among all groups of a kind. Returns the group.

    group: the one of before, if none was started since. actions, does: of its cells, beside those of every grid.
    """
    show_failure()
    group = st.session_state.get("group_started", group)
    groups = [group for group in table().groups() if table().group(group)[0].group_kind == kind]
    if groups:
        group = _choose(groups, group)
        _show(group, actions, does or {})
    return group


def keep(key: str, group: str) -> None:
    """Note a page's group for the session, and in the address."""
    note(key, group)
    address = {"group": group} if group else {}
    if st.query_params.to_dict() != address:
        st.query_params.from_dict(address)


def note(key: str, group: str) -> None:
    """Note a page's group for the session: until then, a run that is broken off leaves it to the next one."""
    st.session_state[key] = group
    st.session_state.pop("group_started", None)


def _choose(groups: Sequence[str], group: str) -> str:
    """Draw the widget that chooses one of the groups, the newest first. Returns it. group: the present one."""
    st.header("Grid", anchor=False)
    if group not in groups:
        group = groups[0]
    if len(groups) == 1:
        return group
    return st.selectbox("Which one", groups, groups.index(group), format_func=_title, key=f"group_{group}") or group


def _title(group: str) -> str:
    """A group in the list, its date first: small screens show the beginning."""
    jobs = table().group(group)
    return f"{look.when(jobs[0].created)} · {_about(jobs)}" if jobs else group


def _about(jobs: Sequence[Job]) -> str:
    """What a group is made of, in words."""
    if jobs[0].axes:
        return f"{jobs[0].name} · {' × '.join(jobs[0].axes)}"
    names = list(dict.fromkeys(job.name for job in jobs))
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(jobs)} clip{'s' * (len(jobs) > 1)} of {some}"


def fail(reason: str) -> None:
    """Note why something could not be done, to be shown above the grid."""
    st.session_state["grid_failure"] = reason


def show_failure() -> None:
    """Show what `fail` noted, and what else there is to say."""
    if said := st.session_state.pop("grid_toast", ""):
        st.toast(said, icon=":material/compare:")
    if reason := st.session_state.pop("grid_failure", ""):
        st.error(look.plain(reason))


def said(group: str) -> str:
    """What is announced to those who hear the page of a group whose making was watched, once that has ended."""
    jobs = table().group(group) if group == st.session_state.get("watched") else []
    if not jobs or any(job.active for job in jobs):
        return ""
    return f"{sum(job.state == 'done' for job in jobs)} of {len(jobs)} clips are made."


def _show(group: str, actions: Sequence[player.Action], does: Mapping[str, Callable[[str], object]]) -> None:
    """Draw a group's grid and what can be done with it."""
    jobs = table().group(group)
    if not jobs:
        st.info("This sweep is no longer on the server.", icon=":material/link_off:")
        return
    pages, number = _pages(jobs), 1
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.markdown(look.plain(_about(jobs)), width="content")
        if len(pages) > 1:
            number = st.number_input(f"Page of {len(pages)}", 1, len(pages), key=f"grid_page_{group}", width=140)
    active = any(job.active for job in jobs)
    _show_page(group, number - 1, actions, does, active)
    if not active:
        _offer(jobs, pages[number - 1])


@st.fragment
def _show_page(
    group: str,
    number: int,
    actions: Sequence[player.Action],
    does: Mapping[str, Callable[[str], object]],
    was_active: bool,
) -> None:
    """Progress and one page of the grid, redrawn at every poll; the whole page is redrawn when all is made."""
    show_failure()
    jobs = table().group(group)
    if was_active and not any(job.active for job in jobs):
        st.rerun()
    done, left = sum(job.state == "done" for job in jobs), table().seconds_left_of(group)
    if was_active:
        st.session_state["watched"] = group
        with st.container(horizontal=True, vertical_alignment="center", key="filling"):
            made = f"{done} of {len(jobs)} made" + (f" · {duration(left)} left" if left else "")
            st.progress(done / len(jobs), made)
            st.button("Cancel", icon=":material/close:", on_click=table().cancel_group, args=(group,), key="cancel")
    by_number = {job.cell: job for job in jobs}
    page = _pages(jobs)[number]
    columns = max(map(len, page.cells))
    numbers = {cell.picture for row in page.cells for cell in row if cell}
    scale = player.scale_for([job for job in jobs if job.cell in numbers])
    tiles = []
    for row in page.cells:
        for cell in [*row, *[None] * (columns - len(row))]:
            job = by_number.get(cast(int, cell.picture)) if cell else None
            if job is None:
                tiles.append(None)
                continue
            note = "Stopping …" if job.stopping and job.active else _STATES.get(job.state) or doing(job)
            has = [player.OPEN, ("added", "+", "Add to compare"), *actions] if job.state == "done" else [player.OPEN]
            tiles.append(player.tile(job, str(job.cell + 1), _label(job), has, scale, note=note))
    does = {"added": _compare, **does}
    heads = page.columns if jobs[0].axes else ()  # of a batch, each tile says all
    labels = {"columns": columns, "heads": heads, "sides": page.rows}
    if opened := player.play(f"grid_{group}", tiles, does, watched=was_active, **labels):
        places.open_clip(opened)


def _label(job: Job) -> str:
    """What is varied of a cell, in words; of a batch's, its picture and its seed."""
    return _take(job) if job.axes else f"{job.name} · {_take(job)}"


def _take(job: Job) -> str:
    """What tells a clip from the others of its group that have the same picture, in words."""
    if not job.axes:
        return f"seed {job.request.seed}"
    axes = [Axis.parse(text) for text in job.axes]
    return ", ".join(axis.label(getattr(job.request, axis.name)) for axis in axes if hasattr(job.request, axis.name))


def _compare(job_id: str) -> None:
    full = len(chosen.ids()) == chosen.MOST and job_id not in chosen.ids()
    chosen.add(job_id)
    said = f"{len(chosen.ids())} of at most {chosen.MOST} clips are chosen: see Compare."
    st.session_state["grid_toast"] = f"No more than {chosen.MOST} clips can be compared." if full else said


def _pages(jobs: Sequence[Job]) -> list[Page]:
    """The pages of a group's grid. Its cells are known by their numbers: some clips may have been deleted."""
    axes = [Axis.parse(text) for text in jobs[0].axes]
    labels = {job.cell: _label(job) for job in jobs} if not axes else {}
    count = math.prod(len(axis.values) for axis in axes) if axes else jobs[-1].cell + 1
    cells = [Cell(number, {}, jobs[0].request) for number in range(count)]
    return grid_pages(cells, axes, [labels.get(number, "") for number in range(count)] if labels else ("",))


def _offer(jobs: Sequence[Job], page: Page) -> None:
    """Draw the downloads of a group that is made, and the table of its clips, with scores where they are asked for."""
    made = [job for job in jobs if job.state == "done"]
    rows = [_row(job) for job in made]
    name = f"{Path(jobs[0].name).stem if jobs[0].axes else 'batch'}-{jobs[0].group}"
    with st.container(horizontal=True):
        st.download_button(
            "All as ZIP",
            lambda: download.archive(
                jobs, {job.id: _take(job) for job in jobs}, [partial(_sheet, jobs, page) for page in _pages(jobs)]
            ),
            f"{name}.zip",
            "application/zip",
            type="primary",
            icon=":material/folder_zip:",
            help="Each clip as MP4, and contact sheets of all.",
            on_click="ignore",
            disabled=not made,
        )
        for title, suffix, mime, write in (
            ("MP4", "mp4", "video/mp4", lambda: _video(_clip_grid(jobs, page))),
            ("PNG", "png", "image/png", lambda: _sheet(jobs, page)),
            ("CSV", "csv", "text/csv", lambda: _csv(rows)),
        ):
            st.download_button(
                f"Grid as {title}" if title != "CSV" else "Table as CSV",
                write,
                f"{name}.{suffix}",
                mime,
                icon=":material/download:",
                on_click="ignore",
                disabled=not made,
            )
        if len(made) < len(jobs):
            st.button(
                f"Make the missing {len(jobs) - len(made)}",
                icon=":material/replay:",
                on_click=_complete,
                args=(jobs[0].group,),
            )
        unknown = [job for job in made if not is_known(job, job)]
        if unknown and st.button("Score all", icon=":material/straighten:", help="Adds the scores to the table."):
            bar = st.progress(0.0)
            for i, job in enumerate(unknown):
                bar.progress(i / len(unknown), f"Scores: clip {i + 1} of {len(unknown)}")
                scores_of(job, job)
            st.rerun()
    if rows:
        st.dataframe(rows, hide_index=True)


def _complete(group: str) -> None:
    try:
        table().complete_group(group)
    except UserError as error:
        fail(str(error))


def _row(job: Job) -> dict[str, Any]:
    """A clip's row of the table: what varies, seconds, evaluations, and scores that are known."""
    axes = [Axis.parse(text) for text in job.axes]
    row: dict[str, Any] = {"cell": job.cell + 1} | ({} if axes else {"picture": job.name, "seed": job.request.seed})
    for axis in axes:
        value = getattr(job.request, axis.name, None)
        row[axis.name] = "" if value is None else value if isinstance(value, (int, float)) else axis.text(value)
    row |= {"seconds": round(job.seconds, 2), "evaluations": job.request.evaluations, "clip": job.id}
    scores = scores_of(job, job) if is_known(job, job) else {}
    return row | {name: round(value, 4) for name, value in scores.items() if value is not None}


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _clip_grid(jobs: Sequence[Job], page: Page) -> ClipGrid:
    """A page's grid as `write_video` takes it; what is not made is an empty place."""
    files = {job.cell: job.frames if job.has(job.frames) else job.clip for job in jobs if job.state == "done"}
    clips = [[files.get(cast(int, cell.picture)) if cell else None for cell in row] for row in page.cells]
    return ClipGrid(clips, page.columns, page.rows, page.captions, _about(jobs))


def _video(grid: ClipGrid) -> bytes:
    return encode_video(grid, grid.fps)


def _sheet(jobs: Sequence[Job], page: Page) -> bytes:
    file = io.BytesIO()
    _clip_grid(jobs, page).picture().save(file, "PNG")
    return file.getvalue()
