"""The network as the denoiser calls it, on the fast path where it computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgm.fast.unet import WIDE, Constants, constants, forward, supports
from sgm.unet.wrapper import OpenAIWrapper


class FastNetwork:
    """Takes and gives what `OpenAIWrapper` does. For inference.

    What does not change from step to step is kept for the condition that came last, while its tensors are the same
    objects. wide: how many values the widest activations may have at once. in_turn: clips of a batch, such as
    guidance's two, one after another; takes half the memory and, of clips that keep the device busy by themselves,
    hardly more time.
    """

    def __init__(self, model: OpenAIWrapper) -> None:
        self.model = model
        self.wide, self.in_turn = WIDE, False
        self.forget()

    def forget(self) -> None:
        """Free what is kept."""
        self.condition: list[Tensor | None] = []
        self.asked: tuple[Any, ...] = ()
        self.known: list[Constants] = []

    def __call__(
        self, x: Tensor, c_noise: Tensor, c: dict[str, Tensor], num_video_frames: int = 1, **inputs: Any
    ) -> Tensor:
        unet, context = self.model.diffusion_model, c.get("crossattn")
        if inputs or torch.is_grad_enabled() or context is None or not supports(unet, context):
            return self.model(x, c_noise, c, num_video_frames=num_video_frames, **inputs)
        size = num_video_frames if self.in_turn else len(x)
        dtype = next(unet.parameters()).dtype
        tensors, asked = [context, c.get("vector")], (num_video_frames, size, self.wide, dtype)
        if [*map(id, tensors)] != [*map(id, self.condition)] or self.asked != asked:
            self.forget()
            for i in range(0, len(x), size):
                y = c["vector"][i : i + size].to(dtype) if "vector" in c else None
                part = context[i : i + size].to(dtype)
                self.known.append(constants(unet, part, y, num_video_frames, self.wide))
                self.known[-1].doubled = self.known[0].doubled
            self.condition, self.asked = tensors, asked
        h = torch.cat([x, c["concat"]], dim=1) if "concat" in c else x
        h = h.to(dtype=dtype, memory_format=torch.channels_last)
        parts = zip(h.split(size), c_noise.split(size), self.known, strict=True)
        out = [forward(unet, part, noise, known) for part, noise, known in parts]
        return (out[0] if len(out) == 1 else torch.cat(out)).to(x.dtype)
