"""Undivided work: what a click on the page does is done whole, although another click comes meanwhile.

Streamlit looks for another click wherever session state is read or set, or something is drawn, and there breaks off
what the first one does: a clip would be in the queue, and the page would not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state.safe_session_state import SafeSessionState


@contextmanager
def undivided() -> Iterator[None]:
    """Work in which Streamlit does not look for another click, whose run begins after it. Also decorates functions."""
    context = get_script_run_ctx(suppress_warning=True)
    requests = vars(context.script_requests) if context and context.script_requests else {}
    name = "on_scriptrunner_yield"
    if context is None or name in requests:  # within other such work
        yield
        return
    requests[name] = lambda: None
    try:
        yield
    finally:
        del requests[name]
    # Has Streamlit look now: `st.rerun` next would take the place of a click that leads to another page.
    _ = "job" in context.session_state


# By this Streamlit calls the widgets' callbacks, which change session state before the page is drawn anew.
SafeSessionState.on_script_will_rerun = undivided()(SafeSessionState.on_script_will_rerun)
