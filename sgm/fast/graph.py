"""Recorded: an evaluation of a network whose kernels are launched by CUDA graphs, where Python is what takes long.

Python launches an evaluation of SVD-XT in some 80 ms on a fast host: more than the kernels of small clips take, or
those of a large one's share on several devices. A graph of a block's kernels is launched in microseconds. There is one
graph for each block, so that a job can still be cancelled at any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
_LAUNCH_SHARE = 0.6  # of an evaluation's time, from which on Python's launching counts as what takes long


class Checks:
    """What is called before each block: `function`, whose exceptions end the evaluation, but not while recording."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def check(self) -> None:
        self.function()


class LaunchTiming:
    """Python's share of an evaluation's time: how long it launches kernels, beside how long they take on the device."""

    def __init__(self) -> None:
        torch.cuda.synchronize()  # else launching would wait for room in the queue of what is launched already
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._start.record()
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """All is launched."""
        self._end.record()
        self._launching = time.perf_counter() - self._begin

    def share(self) -> float:
        """Launching's share, of about 1 where the device waits for it. Waits for the device."""
        self._end.synchronize()
        return self._launching / (self._start.elapsed_time(self._end) / 1000)


class Recorded:
    """`evaluate(x, c_noise)` of a fixed shape, recorded at its third call if launching took most of the second.

    evaluate: calls `checks.check` before each block. early: record at the second call, whatever the first took, and
    raise the error of a recording that fails: for processes that must all do the same. known, key: whether evaluations
    of this kind are recorded, where an earlier clip has shown it: then from the first call on, for all that is made
    once, such as compiled kernels, is there. Replays have the same bits as calls.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor], Tensor],
        checks: Checks,
        early: bool,
        known: dict[tuple[int, ...], bool],
        key: tuple[int, ...],
    ) -> None:
        self._evaluate, self._checks, self._early = evaluate, checks, early
        self._known, self._key = known, key
        self._calls = 0
        self._graphs: list[torch.cuda.CUDAGraph] | None = None  # None: not recorded
        self._timing: LaunchTiming | None = None
        self._inputs: tuple[Tensor, Tensor]
        self._output: Tensor

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self._calls += 1
        key = *self._key, *x.shape
        if self._graphs is None and self._calls == (2 if self._early else 3):
            self._known[key] = self._early or self._launch_bound()
        if self._graphs is None and self._known.get(key):
            self._record(x, c_noise)
            self._known[key] = bool(self._graphs)
        if self._graphs:
            for static, value in zip(self._inputs, (x, c_noise), strict=True):
                static.copy_(value)
            for i, graph in enumerate(self._graphs):
                if i:
                    self._checks.check()
                graph.replay()
            return self._output.clone()
        if self._calls != 2 or key in self._known:
            return self._evaluate(x, c_noise)
        timing = LaunchTiming()
        out = self._evaluate(x, c_noise)
        timing.stop()
        self._timing = timing
        return out

    def _launch_bound(self) -> bool:
        """Whether launching is what takes long. Where it was not timed, it is known that it is not."""
        return self._timing is not None and self._timing.share() > _LAUNCH_SHARE

    def _record(self, x: Tensor, c_noise: Tensor) -> None:
        """Record one evaluation, cut where `check` is called. Where that fails, evaluations go on as before."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graphs have a pool of memory of their own
        self._inputs = x.clone(), c_noise.clone()
        graphs, pool, check = [torch.cuda.CUDAGraph()], torch.cuda.graph_pool_handle(), self._checks.function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def begin() -> None:
            graphs[-1].capture_begin(pool=pool, capture_error_mode="thread_local")

        def cut() -> None:
            graphs[-1].capture_end()
            graphs.append(torch.cuda.CUDAGraph())
            begin()

        try:
            with torch.cuda.stream(stream):
                begin()
                self._checks.function = cut
                try:
                    self._output = self._evaluate(*self._inputs)
                finally:
                    self._checks.function = check
                    graphs[-1].capture_end()
            self._graphs = graphs
        except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
            if self._early:
                raise
            logger.warning("Launches are not recorded as a CUDA graph: %s", str(error).partition("\n")[0])
            self._graphs = []
        torch.cuda.current_stream().wait_stream(stream)
