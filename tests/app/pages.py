"""A page alone, run by Streamlit's test runner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamlit.runtime.scriptrunner import RerunData, get_script_run_ctx
from streamlit.testing.v1 import AppTest

LIMIT = 20.0  # seconds


def visited(show: Callable[[], None], **address: Any) -> AppTest:
    """The page that a function draws, at an address with these query parameters. The function's code stands alone."""
    page = AppTest.from_function(show, default_timeout=LIMIT)
    for name, value in address.items():
        page.query_params[name] = value
    return ok(page.run())


def ok(page: AppTest) -> AppTest:
    assert not page.exception, page.exception[0]
    return page


def address(page: AppTest) -> dict[str, str]:
    """The page's query parameters."""
    return {name: "".join(value) for name, value in page.query_params.items()}


def clicked_meanwhile(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the page, during which another click asks for a new run of it."""

    def interrupted(*given: Any, **named: Any) -> Any:
        if (context := get_script_run_ctx(suppress_warning=True)) and context.script_requests:
            context.script_requests.request_rerun(RerunData())
        return work(*given, **named)

    return interrupted
