"""The pages by their titles, so that they lead to each other without importing each other."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.navigation.page import StreamlitPage


def know(pages: Sequence[StreamlitPage]) -> None:
    """Note the pages of this run."""
    st.session_state["places"] = {page.title: page for page in pages}


def go(title: str, **address: str) -> None:
    """Leave for another page. address: its query parameters. Ends the script's run."""
    st.switch_page(st.session_state["places"][title], query_params=address)


def open_clip(job_id: str) -> None:
    """Leave for the page Create, with a clip."""
    st.session_state.pop("job", None)  # so that it opens the job of its address
    go("Create", job=job_id)
