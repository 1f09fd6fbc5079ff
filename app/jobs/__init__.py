"""The jobs of the app: one table of them, one queue, and the workers that make their clips. Knows no Streamlit.

A job outlives the page that started it, and the server, too: all of it lies in the outputs folder.
"""

from __future__ import annotations

import threading

from app.jobs.estimate import doing
from app.jobs.queue import LONGEST_CHAIN, Table
from app.jobs.record import Job, open_stored
from app.jobs.runner import EngineRunner, Runner, device
from sgm.outputs import FolderInUse, outputs_folder

__all__ = [
    "LONGEST_CHAIN",
    "EngineRunner",
    "FolderInUse",
    "Job",
    "Runner",
    "Table",
    "device",
    "doing",
    "open_stored",
    "table",
]

_table: Table | None = None
_table_lock = threading.Lock()


def table(address: str = "") -> Table:
    """The process's one table. It lives in this module, which Streamlit imports once, so reruns and reloads keep it.

    address: where the page is served, for whoever meets the folder's lock. Raises FolderInUse or UserError as Table.
    """
    global _table
    with _table_lock:
        if _table is None:
            _table = Table(outputs_folder(), address=address)
        return _table
