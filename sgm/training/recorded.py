"""GraphedNetwork: a network whose passes forward and backward are launched by two CUDA graphs, where Python takes long.

Python launches the some 8,000 kernels of a training step of SVD-XT in half a second, which at 14×320×576 is more than
they take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgm.fast.graph import LaunchTiming

logger = logging.getLogger(__name__)
_LAUNCH_SHARE = 0.9  # of a pass's time, from which on Python's launching counts as what takes long
_MOVES = 3  # times that passes are recorded anew, since an optimizer put weights or gradients elsewhere


class GraphedNetwork:
    """`network(x, c_noise, cond, **settings)` for training at one size, recorded at its third call if that saves time.

    Launching of the second call is measured. From the recording on, the gradients of `parameters` are tensors that stay
    (`zero` clears them), and inputs have none: only what the network itself holds is trained, and nothing in it is
    drawn at random. Memory of the recorded passes is not shared with anything else.
    """

    def __init__(self, network: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self._network, self._parameters = network, list(parameters)
        self._calls, self._moves, self._bound = 0, 0, False
        self._passes: list[torch.cuda.CUDAGraph] = []
        self._places: list[int] = []
        self._inputs: list[Tensor]
        self._output: Tensor
        self._gradient: Tensor
        self._anchor: Tensor

    def __call__(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor], **settings: Any) -> Tensor:
        self._calls += 1
        if self._calls == 3 and self._bound:
            self._record(x, c_noise, cond, settings)
        if self._passes and self._places != self._seen():  # as some optimizers do in their first step
            self._passes = []
            self._calls, self._moves = 2 if self._moves < _MOVES else self._calls, self._moves + 1
        elif self._passes:
            return _Replay.apply(self._anchor, self, x, c_noise, *cond.values())  # pyright: ignore[reportReturnType]
        if self._calls != 2 or self._bound:
            return self._network(x, c_noise, cond, **settings)
        timing = LaunchTiming()
        out = self._network(x, c_noise, cond, **settings)
        timing.stop()
        self._bound = timing.share() > _LAUNCH_SHARE
        return out

    def _seen(self) -> list[int]:
        """Where weights and gradients lie."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return [value.data_ptr() for value in (*self._parameters, *gradients)]

    def zero(self) -> bool:
        """Clear the gradients that stay. Returns whether there are any: otherwise they may be set to None."""
        if self._passes:
            torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])  # pyright: ignore[reportPrivateImportUsage]
        return bool(self._passes)

    def _record(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Record both passes. Where that fails, the network is called as before."""
        inputs = [value.detach().clone() for value in (x, c_noise, *cond.values())]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graphs have a pool of memory of their own
        forward, backward, pool = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        kind = torch.get_autocast_dtype("cuda")
        try:
            # A cast that is kept would be of the weights as they are now.
            with torch.autocast("cuda", kind, torch.is_autocast_enabled("cuda"), cache_enabled=False):
                with torch.cuda.graph(forward, pool, capture_error_mode="thread_local"):
                    output = self._network(*inputs[:2], dict(zip(cond, inputs[2:], strict=True)), **settings)
                gradient = torch.zeros_like(output)
                with (
                    torch.autocast("cuda", enabled=False),
                    torch.cuda.graph(backward, pool, capture_error_mode="thread_local"),
                ):
                    output.backward(gradient)
        except RuntimeError as error:  # out of memory, or an operation that cannot be recorded
            logger.warning("Launches are not recorded as a CUDA graph: %s", str(error).partition("\n")[0])
            return
        self._inputs, self._output, self._gradient = inputs, output.detach(), gradient
        self._anchor = torch.zeros((), device=x.device, requires_grad=True)
        self._passes, self._places = [forward, backward], self._seen()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        for static, value in zip(self._inputs, inputs, strict=True):
            static.copy_(value)
        self._passes[0].replay()
        return self._output.clone()

    def backward(self, gradient: Tensor) -> None:
        """Add to the gradients of the parameters."""
        self._gradient.copy_(gradient)
        self._passes[1].replay()


class _Replay(torch.autograd.Function):
    """The two graphs as one operation. anchor: a scalar that has a gradient, so that the result has one."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recorded: GraphedNetwork, *inputs: Tensor) -> Tensor:
        ctx.recorded, ctx.inputs = recorded, len(inputs)
        return recorded.forward(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.recorded.backward(gradient)
        return (None,) * (2 + ctx.inputs)
