"""The jobs of the app: a table with a queue, and the workers that make the clips. Does not import Streamlit.

Jobs outlive the page that submitted them and the server: they are stored in the outputs folder.
"""

from __future__ import annotations

import os
import threading

from app.jobs.estimate import doing
from app.jobs.line import LONGEST_CHAIN
from app.jobs.queue import Table, extension_of, next_seed
from app.jobs.record import Input, Job, open_stored, still, stored_input, stored_last, stored_picture
from app.jobs.runner import EngineRunner, Runner, runners_of, runners_on
from app.jobs.seat import DeviceState
from sgm import cluster_at
from sgm.outputs import FolderInUse, outputs_folder

__all__ = [
    "LONGEST_CHAIN",
    "DeviceState",
    "EngineRunner",
    "FolderInUse",
    "Input",
    "Job",
    "Runner",
    "Table",
    "doing",
    "extension_of",
    "next_seed",
    "open_stored",
    "still",
    "stored_input",
    "stored_last",
    "stored_picture",
    "table",
]

_table: Table | None = None
_table_lock = threading.Lock()


def table(address: str = "") -> Table:
    """The process's table of jobs. Streamlit imports this module once, so that reruns and reloads keep the table.

    Its workers are on the cluster that SGM_RAY names, else on the devices of SGM_DEVICES, or on all, SGM_GPUS of them
    to a worker. SGM_NO_WATERMARK leaves clips without the invisible watermark; SGM_SAFETY is the filter's mode.
    address: of the page, for the message to a second process. Raises FolderInUse or UserError as `Table`, UserError for
    a device or a cluster that cannot be used.
    """
    global _table
    with _table_lock:
        if _table is None:
            if ray := os.environ.get("SGM_RAY"):
                runners = runners_of(cluster_at(ray, int(os.environ.get("SGM_RAY_ACTORS", 0)) or None))
            else:
                runners = runners_on(os.environ.get("SGM_DEVICES") or "all", int(os.environ.get("SGM_GPUS") or 1))
            watermark = os.environ.get("SGM_NO_WATERMARK", "") in ("", "0")
            _table = Table(outputs_folder(), runners, address, watermark, os.environ.get("SGM_SAFETY") or "off")
        return _table
