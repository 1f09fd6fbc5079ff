"""The result of a job: its preview, its clip or its error, actions on the clip, and other recent clips."""

from __future__ import annotations

import streamlit as st

from app import look, places, player
from app.create import extend, picture, session, stills
from app.create import settings as fields
from app.jobs import Job, still, table
from app.lab import chosen
from app.summary import summary, varied
from sgm import VIEW_VERSIONS, UserError
from sgm.amounts import duration


def show_result(job: Job | None) -> None:
    """Show the job's present state. Nothing of it is polled: polls would restart the video."""
    if job is None and st.session_state["job"]:
        st.info("This clip is no longer on the server.", icon=":material/link_off:")
        st.button("Start anew", on_click=session.forget_job)
    elif job is None:
        what = "clip" if fields.current_version().name in VIEW_VERSIONS else "picture"
        how = "Press Generate." if picture.chosen() else f"Choose a {what}, then press Generate."
        st.html(f'<div class="stage"><b>Your clip will play here</b>{how}</div>')
    elif job.active:
        st.html(stills.preview(job))
        st.caption(
            f"Making a clip of {look.plain(job.name)}. Change settings or reload meanwhile: it will not be lost."
        )
    elif job.state == "done":
        _show_clip(job)
    else:
        show = st.error if job.state == "failed" else st.info
        comfort = "" if job.state == "failed" else " Your settings are kept."
        show(look.plain(job.message) + comfort)
        st.button("Run again", icon=":material/replay:", on_click=session.submit, args=(table().again, job.id))
        st.html(stills.preview(job))
    if job and not job.active:
        session.seen(job)
    _show_queue(job)


def _show_queue(shown: Job | None) -> None:
    """The session's other jobs that are not done."""
    mine, groups = session.my_jobs(), session.my_groups()
    others = [job for job in mine if shown is None or job.id != shown.id]
    if refused := session.line_refused():
        st.warning(look.plain(refused))
    if not others and not groups:
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.header("To come", anchor=False, width="content")
        st.button(
            "Take all out",
            icon=":material/delete_sweep:",
            type="tertiary",
            on_click=session.change_line,
            args=(table().empty,),
            help="Make none of what waits of yours, sweeps and batches included. What runs goes on.",
        )
    with st.container(key="queue"):
        for group, jobs in groups.items():
            with st.container(horizontal=True, vertical_alignment="center"):
                done, page = sum(job.state == "done" for job in jobs), jobs[0].group_kind
                name = jobs[0].name if jobs[0].axes else f"{len({job.name for job in jobs})} pictures"
                st.markdown(f"**{look.plain(name)}** · {page}: {done} of {len(jobs)} made", width="stretch")
                if st.button(f"Show {page}", type="tertiary", key=f"group_{group}"):
                    places.go(page, group=group)
                st.button(
                    "Take out",
                    icon=":material/close:",
                    type="tertiary",
                    on_click=table().cancel_group,
                    args=(group,),
                    key=f"take_out_{group}",
                    help="Make no more of its clips; those that are made stay.",
                )
        waiting = [job for job in mine if job.state == "queued"]
        for job in [*(job for job in others if job.state != "queued"), *waiting]:
            with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
                settings = " · ".join(filter(None, [f"seed {job.request.seed}", varied(job.request)]))
                st.markdown(f"**{look.plain(job.name)}** · {look.plain(settings)}", width="stretch")
                with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", width="content"):
                    if job.state == "queued":
                        _offer_changes(job, job == waiting[0], job == waiting[-1])
                    st.button(
                        "Take out",
                        icon=":material/close:",
                        type="tertiary",
                        on_click=table().cancel,
                        args=(job.id,),
                        key=f"take_out_{job.id}",
                        help=f"Do not make this clip of {look.plain(job.name)}.",
                    )


def _offer_changes(job: Job, first: bool, last: bool) -> None:
    """Buttons that move a waiting job in its owner's line and open its settings."""
    name = look.plain(job.name)
    for key, label, icon, by, off in (
        ("earlier", "Earlier", "arrow_upward", -1, first),
        ("later", "Later", "arrow_downward", 1, last),
    ):
        st.button(
            f"{label}: {name}",
            icon=f":material/{icon}:",
            type="tertiary",
            disabled=off,
            on_click=session.change_line,
            args=(table().move, job.id, by),
            key=f"{key}_{job.id}",
        )
    st.button(
        f"Edit: {name}",
        icon=":material/edit:",
        type="tertiary",
        on_click=session.edit,
        args=(job.id,),
        key=f"edit_{job.id}",
        help="Opens its settings, to be changed while it waits.",
    )


def _offer_compare(job: Job) -> None:
    """A button that adds the clip to those that are compared; where it is among them, one that leads there."""
    if job.id in chosen.ids():
        if st.button(f"Compare {len(chosen.ids())}", icon=":material/compare:", help="Leads to the clips to compare."):
            places.go("Compare")
    else:
        st.button(
            "Add to compare",
            icon=":material/compare:",
            disabled=len(chosen.ids()) == chosen.MOST,
            on_click=chosen.add,
            args=(job.id,),
        )


def show_recent(shown: Job | None) -> None:
    """Show the latest other clips, with buttons that open them."""
    others = [job for job in table().jobs() if job.state == "done" and (shown is None or job.id != shown.id)][:4]
    if not others:
        return
    st.header("Recent clips", anchor=False)
    with st.container(key="recent"):
        for job in others:
            with st.container():
                if picture := still(job):
                    st.image(picture, width="stretch", alt=f"First frame of the clip of {job.name}")
                st.button(
                    f"Open {look.plain(job.name)}, {look.when(job.created)}",
                    key=f"recent_{job.id}",
                    help=f"{look.plain(job.name)}, seed {job.request.seed}, {look.when(job.created)}",
                    on_click=session.reopen,
                    args=(job.id,),
                    width="stretch",
                )


def _show_clip(job: Job) -> None:
    try:
        content = table().video(job)
    except UserError as error:
        st.info(look.plain(str(error)), icon=":material/link_off:")
        return
    if job.message:
        st.warning(look.plain(job.message), icon=":material/save:")
    if job.unwritten and st.button("Save again", icon=":material/save:"):
        with st.spinner("Saving …"):
            saved = table().save_again(job.id)
        if saved is None or saved.unwritten is None:
            st.rerun()
        st.toast("There is still no room.", icon=":material/save:")
    part = player.choose_part(job)
    content = part.read_bytes() if part else content
    player.play(job, content, part)
    with st.container(horizontal=True, key="actions"):
        player.offer_downloads(job, content, part)
        st.button(
            "New take",
            icon=":material/casino:",
            help="The same with the next seed.",
            on_click=session.submit,
            args=(table().new_take, job.id),
        )
        extend.offer(job)
        _offer_compare(job)
        player.offer_link(job)
    links = len(table().chain(job.id))
    film = f"{links} clips joined · last of them: " if links > 1 else ""
    took = duration(job.seconds) + (f" on {job.device}" if job.device else "")
    st.caption(f"What ran: {film}{look.plain(summary(job.request))} · {look.plain(took)}")
    if fields.new_seed():
        st.button(
            f"Keep seed {job.request.seed}",
            icon=":material/push_pin:",
            help="For all clips from now on.",
            on_click=fields.keep_seed,
            args=(job.request.seed,),
        )
