"""The stand's jobs: who asked for them, how many they may have, by what token they are found, and until when.

All of that is in a job's owner, `stand-VISITOR-TOKEN`, so that it outlives the server. Does not import Streamlit.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
import time
from contextlib import suppress

from PIL import Image

from app.jobs import Job, table
from app.jobs.record import STAND_OWNER
from app.stand.moods import request_of
from sgm import UserError

HOUR = 3600.0  # seconds
_NO_FAULT = ("failed", "interrupted")  # jobs that do not count: nobody got a film
_salt = secrets.token_bytes(16)  # of this process, so that no address can be told from what is stored
_submitting = threading.Lock()


class TooMany(UserError):
    """Raised for a visitor who has had the films of an hour. minutes: until the next one is possible."""

    def __init__(self, minutes: int) -> None:
        super().__init__(f"No more films for {minutes} min.")
        self.minutes = minutes


def visitor(address: str = "") -> str:
    """A new visitor's mark; with the address of a phone, always the same one."""
    if not address:
        return secrets.token_hex(4)
    return hmac.digest(_salt, address.encode(), "sha256").hex()[:8]


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_hex(8)


def submit(picture: Image.Image, name: str, mood: str, visitor: str, limit: int, token: str = "") -> str:
    """Queue a film. Returns the token by which it is found. limit: films an hour of a visitor.

    token: one to use, of `new_token`. Raises TooMany; UserError where it cannot be stored.
    """
    request = request_of(mood, picture.size)
    with _submitting:
        before = [job.created for job in _jobs() if job.owner.split("-")[1] == visitor and job.state not in _NO_FAULT]
        recent = sorted(created for created in before if created > time.time() - HOUR)
        if len(recent) >= limit:
            raise TooMany(max(1, math.ceil((recent[-limit] + HOUR - time.time()) / 60)))
        token = token or new_token()
        table().submit(request, picture, name, f"{STAND_OWNER}{visitor}-{token}")
    return token


def find(token: str) -> Job | None:
    """The job of a token, as it is now; None for an unknown one."""
    found = [job for job in _jobs() if hmac.compare_digest(job.owner.rpartition("-")[2].encode(), token.encode())]
    return table().get(found[0].id) if found else None


def is_expired(job: Job, hours: float) -> bool:
    """Whether a job ended so many hours ago."""
    return not job.active and (job.ended or job.created) + hours * HOUR < time.time()


def delete_expired(hours: float) -> None:
    """Delete the films of so many hours ago, with their pictures."""
    for job in _jobs():
        if is_expired(job, hours):
            with suppress(UserError, OSError):  # once more in a minute
                table().delete(job.id)


def delete_expired_from_now_on(hours: float) -> None:
    """Do it each minute, in a thread of its own."""

    def watch() -> None:
        while True:
            time.sleep(60)
            try:
                delete_expired(hours)
            except Exception:
                logging.getLogger(__name__).exception("What visitors have left could not be deleted.")

    threading.Thread(target=watch, name="stand", daemon=True).start()


def _jobs() -> list[Job]:
    return [job for job in table().jobs() if job.at_stand]
