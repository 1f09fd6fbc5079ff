"""`python -m sgm.follower`: a process that computes clips together with its leader (see `sgm.ranks`)."""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

import torch

from sgm.engine import load_engine
from sgm.errors import UserError
from sgm.pipeline import generate, generate_views
from sgm.ranks import Follower, Stopped
from sgm.request import ViewsRequest, request_class


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(reason: str) -> None:
        """Tell the leader that this process is ready, or why it fails."""
        pickle.dump(reason, answers)
        answers.flush()

    start: dict[str, Any] = pickle.load(sys.stdin.buffer)
    load = start.pop("load")
    follower = Follower(**start, words=sys.stdin.buffer)
    torch.set_num_threads(max(torch.get_num_threads() // follower.size, 1))  # of the processor that all share
    try:
        engine = load_engine(**load, device=start["device"])
        answer("")
        follower.join()
        engine.ranks = follower
        while True:
            settings, (given, more), follower.plan, engine.loras = follower.next_job()
            request = request_class(settings["version"])(**settings)
            try:
                if isinstance(request, ViewsRequest):
                    generate_views(engine, request, given, first=more)
                else:
                    generate(engine, request, given, last=more)
            except Stopped:
                pass
            except UserError:
                if not follower.wait_for_stop():
                    raise
    except BaseException as error:
        answer(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
