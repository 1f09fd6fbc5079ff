"""Run: one generation's own state, so that the engine need have none: memory plan, progress, cancelling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sgm.engine import DiffusionEngine, copy_to
from sgm.fast.unet import FastUNet
from sgm.memory import GIB, Plan, choose, free_memory
from sgm.request import VideoRequest

logger = logging.getLogger(__name__)
T = TypeVar("T")
Condition = dict[str, Tensor]

# Phase -> (share of the job's time at its start, share of its own), as they usually are.
_SHARES = {"load": (0.0, 0.0), "encode": (0.0, 0.03), "sample": (0.03, 0.77), "decode": (0.8, 0.2)}


@dataclass(frozen=True)
class Progress:
    """Step `step` of `total` of a phase ("encode", "sample", "decode"; "load", before them) is done.

    preview: in "sample", draws the middle frame as it stands, uint8 (h, w, 3) at the latents' size. note: how memory is
    spent, where there is a choice.
    """

    phase: str
    step: int
    total: int
    note: str = field(default="", compare=False)
    preview: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def fraction(self) -> float:
        """Share of the whole job that is done, 0 to 1, with the phases' usual shares of the time."""
        start, share = _SHARES[self.phase]
        return start + share * self.step / self.total


OnStep = Callable[[Progress], None]


def _ignore(*_: object) -> None:
    """Takes anything and does nothing."""


class Run:
    """One generation on an engine that others may be using, too.

    On a GPU the fastest plan is taken that fits into its free memory (low_memory: the smallest). Where memory runs out
    nevertheless, the smallest takes its place, and only the evaluation that failed is done again. `check` is called
    before each block of a network and each chunk of the decoder; what it or `on_step` raises ends the run and reaches
    the caller.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        request: VideoRequest,
        on_step: OnStep | None = None,
        check: Callable[[], None] | None = None,
        low_memory: bool = False,
    ) -> None:
        self.engine, self.request = engine, request
        self.on_step, self.check = on_step or _ignore, check or _ignore
        self.estimate: Tensor  # the middle frame's latest clean latents (c, h, w)
        self._copy: tuple[nn.Module, Any] | None = None  # an offloaded part, and its copy on the device
        self._clip = request.frames, request.height, request.width, request.build_guider().needs_uc
        self.plan, self.note = Plan(), ""
        free = free_memory(engine.device)
        if free is not None:
            self.plan = choose(engine, *self._clip, free, low_memory)
            self.note = f"GPU memory: {self.plan} of {free / GIB:.1f} GiB."
            logger.info(self.note)
            self._place_weights()

    def report(self, phase: str, step: int, total: int, preview: Callable[[], np.ndarray] | None = None) -> None:
        self.on_step(Progress(phase, step, total, self.note, preview))

    def conditions(self, batch: Condition) -> tuple[Condition, Condition]:
        """Condition and unconditional condition, one row a frame, of the conditioner's inputs on any device."""
        wanted = self.engine.conditioner.input_keys
        inputs = {key: value.to(self.engine.device) for key, value in batch.items() if key in wanted}

        def embed(conditioner: Any) -> tuple[Condition, Condition]:
            return conditioner.get_unconditional_conditioning(inputs, check=self.check)

        c, uc = self._with_part("conditioner", embed)
        return self._per_frame(c), self._per_frame(uc)

    def denoiser(self, cond: Condition) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser for a condition of (b t) rows: x (b t, c, h, w), sigma (b t,) -> estimate of the clean x."""
        frames = self.request.frames
        conditioned: tuple[FastUNet, Plan, Callable[..., Tensor]] | None = None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            def evaluate(network: FastUNet) -> Tensor:
                nonlocal conditioned
                plan = self.plan
                if conditioned is None or conditioned[0] is not network or conditioned[1] is not plan:
                    conditioned = None  # what goes first makes room for what comes
                    run = network.conditioned(cond, frames, plan.max_values, plan.clip_by_clip, self.check)
                    conditioned = network, plan, run
                return self.engine.denoiser(conditioned[2], x, sigma)

            estimate = self._with_part("network", evaluate)
            self.estimate = estimate[frames // 2 - frames]  # of a guided batch the conditional estimates stand last
            return estimate

        return denoise

    def decode(self, z: Tensor) -> np.ndarray:
        """Scaled latents (t, c, h, w) -> frames, uint8 (t, h, w, 3)."""

        def on_block(done: int, of: int) -> None:
            self.report("decode", done, of)

        def paint(first_stage: nn.Module) -> Tensor:
            video = self.engine.decode_clip(z, self.request.decode_chunk, on_block, first_stage, self.check)
            return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

        return self._with_part("autoencoder", paint).numpy()

    def _with_part(self, name: str, work: Callable[[Any], T]) -> T:
        """`work` with a part of the engine that is on the device; once more with less memory where that runs out."""
        while True:
            try:
                return work(self._on_device(name))
            except torch.cuda.OutOfMemoryError:
                if not self.note or self.plan.offload:
                    raise
            # Only here nothing that failed is held any more.
            self.plan = choose(self.engine, *self._clip, None, low=True)
            self.note = f"GPU memory ran out; from here on {self.plan}."
            logger.warning(self.note)
            self._place_weights()
            torch.cuda.empty_cache()

    def _place_weights(self) -> None:
        self.engine.keep_on(torch.device("cpu") if self.plan.offload else self.engine.device)

    def _on_device(self, name: str) -> Any:
        """A part of the engine on the device: its own or, while weights are offloaded, a copy; one part at a time."""
        device, network = self.engine.device, self.engine.network
        module = network.model if name == "network" else self.engine.parts[name]
        if next(module.parameters()).device == device:
            self._copy = None
            return network if name == "network" else module
        if self._copy is None or self._copy[0] is not module:
            self._copy = None  # what goes first makes room for what comes
            copy = copy_to(module, device)
            self._copy = module, FastUNet(copy) if name == "network" else copy
        return self._copy[1]

    def _per_frame(self, cond: Condition) -> Condition:
        """One row a frame: rows given once a clip are repeated."""
        frames = self.request.frames
        return {k: v if len(v) == frames else v.repeat_interleave(frames, 0) for k, v in cond.items()}
