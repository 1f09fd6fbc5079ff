"""OpenAIWrapper, between denoiser and network: passes each part of the condition to the network's input for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OpenAIWrapper(nn.Module):
    """Holds the network as `diffusion_model`, its name in official checkpoints."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: Tensor, c_noise: Tensor, c: dict[str, Tensor], **kwargs) -> Tensor:
        """x: (b t, c, h, w); c: "concat" (b t, c', h, w), "crossattn" (b t, m, d), "vector" (b t, a), each optional.

        What c holds beside these, such as "cond_view", is the network's input of that name.
        Runs in the network's own dtype and returns x's.
        """
        dtype = next(self.diffusion_model.parameters()).dtype
        c = {key: value.to(dtype) for key, value in c.items()}
        h = torch.cat([x.to(dtype), c["concat"]], dim=1) if "concat" in c else x.to(dtype)
        h = h.to(memory_format=torch.channels_last)
        kwargs |= {key: value for key, value in c.items() if key not in ("concat", "crossattn", "vector")}
        out = self.diffusion_model(h, c_noise, context=c.get("crossattn"), y=c.get("vector"), **kwargs)
        return out.to(x.dtype)
