"""What code has set of widgets stays until the browser is told of it.

With each click a browser sends what all widgets show. One that comes before the browser has drawn what an earlier
click's run set, as a preset sets sliders, sends what these showed before, and Streamlit would take that for changes by
hand.
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

_KEY = "untold"  # in a session's state
_DRAWING = 3.0  # seconds after a run in which a browser may still be drawing what it set
_LONGEST = 30.0  # seconds, for a run that never ends as it should


@dataclass
class _Untold:
    """until: widgets to which code gave another value -> when a browser must have drawn it.

    sent: what the browser sent last. page: of which page of the app.
    """

    until: dict[str, float] = field(default_factory=dict)
    sent: dict[str, WidgetState] = field(default_factory=dict)
    page: str = ""


def _untold(session: SafeSessionState) -> _Untold:
    state = session._state
    if _KEY not in state:
        state[_KEY] = _Untold()
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
        _untold(self).until[key] = time.monotonic() + _LONGEST


def _begin_with_what_is_set(self: SafeSessionState, fresh_widget_states: WidgetStates | None, **more: Any) -> None:
    """Leave out what the browser sends of such a widget, if it is what it sent before."""
    untold, fresh = _untold(self), fresh_widget_states
    if fresh is not None:
        before, untold.sent = untold.sent, {widget.id: widget for widget in fresh.widgets}
        changed = [widget for id_, widget in untold.sent.items() if _is_changed(widget, before.get(id_))]
        context = get_script_run_ctx(suppress_warning=True)
        page, part = (context.page_script_hash, context.fragment_ids_this_run) if context else ("", None)
        if changed or part or page != untold.page:
            untold.until = _still_untold(self._state, untold.until, changed)
        else:
            untold.until = {}  # what changed is one of these, which was set back by hand
        untold.page = page
        known = (widget for id_, widget in untold.sent.items() if user_key_from_element_id(id_) not in untold.until)
        fresh = WidgetStates(widgets=known)
    _begin(self, fresh, **more)
    for key in untold.until:
        if key in self._state:
            _set(self, key, self._state[key])  # which has the run that begins tell the browser


def _still_untold(state: SessionState, until: dict[str, float], changed: list[WidgetState]) -> dict[str, float]:
    """Those of `until` that the browser has not drawn. changed: what it sends otherwise than before."""
    sent = WStates(widget_metadata=state._new_widget_state.widget_metadata)
    for widget in changed:
        key = user_key_from_element_id(widget.id)
        if key in until and key in state:
            sent.set_widget_from_proto(widget)
            if sent.get(widget.id) == state[key]:
                return {}  # as code set it: it is drawn, and so are the others
    now, keys = time.monotonic(), {user_key_from_element_id(widget.id) for widget in changed}
    return {key: end for key, end in until.items() if now < end and key not in keys}


def _is_changed(widget: WidgetState, before: WidgetState | None) -> bool:
    kind = widget.WhichOneof("value") or ""
    return bool(getattr(widget, kind)) if "trigger" in kind else widget != before  # a click, or another value


def _end_and_note(self: SafeSessionState, widget_ids_this_run: Collection[str], **more: Any) -> None:
    _end(self, frozenset(widget_ids_this_run), **more)
    if more.get("remove_stale_widgets"):  # as only of a run that was not broken off
        untold, id_of, end = _untold(self), self._state._key_id_mapper.get_id_from_key, time.monotonic() + _DRAWING
        for key in untold.until:
            if id_of(key, None) in widget_ids_this_run:
                untold.until[key] = end


SafeSessionState.__setitem__ = _set_and_note
SafeSessionState.on_script_will_rerun = _begin_with_what_is_set
SafeSessionState.on_script_finished = _end_and_note
