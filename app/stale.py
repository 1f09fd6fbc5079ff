"""Stale widget states of a browser are left out: what code has set in session state stays until it has been drawn.

With each click a browser sends the state of all widgets. A click that comes before the browser has drawn what an
earlier click's run set, as a preset sets sliders, sends the sliders' state of before, which Streamlit would take for a
change by hand.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state.common import user_key_from_element_id
from streamlit.runtime.state.safe_session_state import SafeSessionState
from streamlit.runtime.state.session_state import SessionState, WStates

_KEY = "pending_widgets"  # in session state
_DRAWING = 3.0  # seconds after a run in which a browser may still be drawing what it set
_LONGEST = 30.0  # seconds, for a run that never ends as it should


@dataclass
class _Pending:
    """Widgets whose new value a browser may not have drawn yet.

    until: keys of widgets to which code gave another value -> when it must have been drawn. sent: the widget states
    that the browser sent last, by id. page: the hash of the page that it sent them of.
    """

    until: dict[str, float] = field(default_factory=dict)
    sent: dict[str, WidgetState] = field(default_factory=dict)
    page: str = ""


def _pending(session: SafeSessionState) -> _Pending:
    state = session._state
    if _KEY not in state:
        state[_KEY] = _Pending()
    return state[_KEY]


_set, _begin, _end = (
    SafeSessionState.__setitem__,
    SafeSessionState.on_script_will_rerun,
    SafeSessionState.on_script_finished,
)


def _set_and_note(self: SafeSessionState, key: str, value: Any) -> None:
    state = self._state
    differs = key in state._key_id_mapper and key in state and state[key] != value
    _set(self, key, value)
    if differs:
        _pending(self).until[key] = time.monotonic() + _LONGEST


def _begin_with_what_is_set(self: SafeSessionState, fresh_widget_states: WidgetStates | None, **more: Any) -> None:
    """Leave out the state of a widget that is pending, if the browser has sent the same before."""
    pending, fresh = _pending(self), fresh_widget_states
    if fresh is not None:
        before, pending.sent = pending.sent, {widget.id: widget for widget in fresh.widgets}
        changed = [widget for id_, widget in pending.sent.items() if _is_changed(widget, before.get(id_))]
        context = get_script_run_ctx(suppress_warning=True)
        page, part = (context.page_script_hash, context.fragment_ids_this_run) if context else ("", None)
        if changed or part or page != pending.page:
            pending.until = _still_pending(self._state, pending.until, changed)
        else:
            pending.until = {}  # then one of these widgets was set back by hand
        pending.page = page
        known = (widget for id_, widget in pending.sent.items() if user_key_from_element_id(id_) not in pending.until)
        fresh = WidgetStates(widgets=known)
    _begin(self, fresh, **more)
    for key in pending.until:
        if key in self._state:
            _set(self, key, self._state[key])  # which has the run that begins tell the browser


def _still_pending(state: SessionState, until: dict[str, float], changed: list[WidgetState]) -> dict[str, float]:
    """The widgets of `until` that the browser may not have drawn. changed: states other than those it sent before."""
    sent = WStates(widget_metadata=state._new_widget_state.widget_metadata)
    for widget in changed:
        key = user_key_from_element_id(widget.id)
        if key in until and key in state:
            sent.set_widget_from_proto(widget)
            if sent.get(widget.id) == state[key]:
                return {}  # the value that code set: this widget is drawn, and so are the others
    now, keys = time.monotonic(), {user_key_from_element_id(widget.id) for widget in changed}
    return {key: end for key, end in until.items() if now < end and key not in keys}


def _is_changed(widget: WidgetState, before: WidgetState | None) -> bool:
    kind = widget.WhichOneof("value") or ""
    return bool(getattr(widget, kind)) if "trigger" in kind else widget != before  # a click, or another value


def _end_and_note(self: SafeSessionState, widget_ids_this_run: Collection[str], **more: Any) -> None:
    _end(self, frozenset(widget_ids_this_run), **more)
    if more.get("remove_stale_widgets"):  # as only of a run that was not broken off
        pending, id_of, end = _pending(self), self._state._key_id_mapper.get_id_from_key, time.monotonic() + _DRAWING
        for key in pending.until:
            if id_of(key, None) in widget_ids_this_run:
                pending.until[key] = end


SafeSessionState.__setitem__ = _set_and_note
SafeSessionState.on_script_will_rerun = _begin_with_what_is_set
SafeSessionState.on_script_finished = _end_and_note
