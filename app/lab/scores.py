"""The table of what differs between clips: their settings, and their scores."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import streamlit as st

from app import look
from app.jobs import Job, stored_picture, table
from app.lab.player import letters
from app.summary import differing
from sgm import SCORES, Scores, UserError, score_clip

_known: dict[tuple[str, str], Scores] = {}  # ids of a clip and of the one that it is compared with: for all sessions


def show_table(jobs: Sequence[Job]) -> None:
    """Draw the settings that differ, at once, and below them the scores, as they are computed."""
    settings = differing(jobs)
    st.header("What differs", anchor=False)
    if not settings:
        st.caption("No setting: the same picture and settings, made by the same program on the same kind of device.")
    drawn, progress = st.empty(), st.empty()
    drawn.html(_table(jobs, settings))
    scores: list[Scores] = []
    for i, job in enumerate(jobs):
        if not is_known(job, jobs[0]):
            progress.progress(i / len(jobs), f"Scores: clip {i + 1} of {len(jobs)}")
        scores.append(scores_of(job, jobs[0]))
        if i + 1 == len(jobs) or not is_known(jobs[i + 1], jobs[0]):
            drawn.html(_table(jobs, settings, scores))
    progress.empty()
    with st.expander("What the scores mean"):
        st.markdown(
            "The best are bold. PSNR, SSIM, XPSNR and LPIPS are against clip A, for clips of its size and length."
        )
        for score in SCORES.values():
            unit = f", {look.plain(score.unit)}" if score.unit else ""
            best = f" ({score.better} is better)" if score.better else ""
            st.markdown(f"**{score.title}**{unit}{best}: {look.plain(score.meaning)}")


def is_known(job: Job, reference: Job) -> bool:
    """Whether `scores_of` takes no time."""
    return (job.id, reference.id) in _known


def scores_of(job: Job, reference: Job) -> Scores:
    """A clip's scores, computed once; {} of one whose files are gone. reference: another clip, or the same for none."""
    key = job.id, reference.id
    if key not in _known:
        try:
            frames, _ = table().frames(job)
            first, *_ = table().chain(job.id) or [job]
            picture = None if job.request.family.orbits else stored_picture(first)
            other = table().frames(reference)[0] if job.id != reference.id else None
            other = other if other is None or other.shape == frames.shape else None
            _known[key] = score_clip(frames, picture, other, first.request)
        except UserError:
            return {}
    return _known[key]


def _table(jobs: Sequence[Job], settings: Sequence[tuple[str, list[str]]], scores: Sequence[Scores] = ()) -> str:
    """HTML of a table with a column for each clip. scores: of the first clips, of those that are known."""

    def row(title: str, texts: Sequence[str], about: str = "") -> str:
        return f'<tr title="{html.escape(about)}"><th scope="row">{html.escape(title)}</th>{"".join(texts)}</tr>'

    heads = "".join(f'<th scope="col">{letter}</th>' for letter in letters(jobs))
    rows = [row(title, [f"<td>{html.escape(text)}</td>" for text in texts]) for title, texts in settings]
    rows += [row(*entry) for entry in _score_rows(scores, len(jobs))]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="What differs between the clips">'
        f'<table class="figures"><thead><tr><td></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _score_rows(scores: Sequence[Scores], count: int) -> Iterator[tuple[str, list[str], str]]:
    """Title, cells and meaning of each score that some clip has, the best in bold where one is better than others."""
    for name, score in SCORES.items():
        values = [some.get(name) for some in scores]
        known = [value for value in values if value is not None]
        if not known:
            continue
        texts = ["–" if value is None else f"{value:.3g}" for value in values] + [""] * (count - len(values))
        best = f"{(max if score.better == 'higher' else min)(known):.3g}" if score.better else None
        alike = len({f"{value:.3g}" for value in known}) == 1
        cells = [f"<td><b>{text}</b></td>" if text == best and not alike else f"<td>{text}</td>" for text in texts]
        yield f"{score.title}, {score.unit}" if score.unit else score.title, cells, score.meaning
