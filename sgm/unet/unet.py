"""UNet: blocks of residual layers and transformers at falling and rising resolution (Ronneberger et al. 2015).

The arrangement that all networks of the stack share; they differ in the layers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import Downsample, GroupNorm, Upsample, zeroed
from sgm.layers.video import SpatialVideoTransformer, VideoResBlock, maybe_recomputed
from sgm.layers.views import ViewTimeTransformer


class Block(nn.Sequential):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: gives each layer the inputs that it takes."""

    use_checkpoint = False

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None,
        frames: int,
        image_only: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Tensor:
        recompute = self.use_checkpoint and self.training
        for layer in self:
            if isinstance(layer, SpatialVideoTransformer):
                x = layer(x, context, frames, image_only, recompute)
                continue
            inputs: tuple = ()
            if isinstance(layer, VideoResBlock):
                inputs = emb, frames, image_only
            elif isinstance(layer, ViewTimeTransformer):
                inputs = emb, context, views
            x = maybe_recomputed(recompute, layer, x, *inputs)
        return x


class UNet(nn.Module):
    """Base of the networks. Parameters carry the official YAMLs' names.

    attention_resolutions: downsampling factors at which transformers stand. num_classes: "sequential" (a vector
    condition of `adm_in_channels`) or None. use_checkpoint: trade compute for memory while training. residual(channels,
    out) and transformer(channels) make the layers.
    """

    def __init__(
        self,
        residual: Callable[[int, int], nn.Module],
        transformer: Callable[[int], nn.Module],
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: str | None = None,
        adm_in_channels: int | None = None,
        use_checkpoint: bool = False,
        use_linear_in_transformer: bool = True,
        use_spatial_context: bool = True,
        spatial_transformer_attn_type: str = "softmax",
    ) -> None:
        super().__init__()
        if not use_linear_in_transformer or not use_spatial_context:
            raise ValueError("use_linear_in_transformer and use_spatial_context must be true.")
        if num_classes not in (None, "sequential"):
            raise ValueError(f"num_classes must be 'sequential' or left out; got {num_classes!r}.")
        if not spatial_transformer_attn_type.startswith("softmax"):
            raise ValueError(f"spatial_transformer_attn_type must be 'softmax'; got {spatial_transformer_attn_type!r}.")
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.vector_channels = adm_in_channels if num_classes else None
        emb_channels = model_channels * 4
        self.time_embed = mlp(model_channels, emb_channels)
        if num_classes == "sequential":
            if adm_in_channels is None:
                raise ValueError("num_classes 'sequential' needs adm_in_channels, the length of the vector condition.")
            self.label_emb = nn.Sequential(mlp(adm_in_channels, emb_channels))

        def level(channels: int, out: int, factor: int) -> list[nn.Module]:
            return [residual(channels, out), *([transformer(out)] if factor in attention_resolutions else [])]

        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        channels, factor = model_channels, 1
        skips = [channels]
        for i, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Block(*level(channels, mult * model_channels, factor)))
                channels = mult * model_channels
                skips.append(channels)
            if i < len(channel_mult) - 1:
                self.input_blocks.append(Block(Downsample(channels)))
                factor *= 2
                skips.append(channels)

        self.middle_block = Block(residual(channels, channels), transformer(channels), residual(channels, channels))

        self.output_blocks = nn.ModuleList()
        for i, mult in reversed(list(enumerate(channel_mult))):
            for j in range(num_res_blocks + 1):
                layers = level(channels + skips.pop(), mult * model_channels, factor)
                channels = mult * model_channels
                if i > 0 and j == num_res_blocks:
                    layers.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(Block(*layers))

        self.out = nn.Sequential(
            GroupNorm(32, channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        )
        for module in self.modules():
            if isinstance(module, Block):
                module.use_checkpoint = use_checkpoint

    @property
    def blocks(self) -> list[Block]:
        """All blocks, in the order in which they are evaluated."""
        return [cast(Block, block) for block in (*self.input_blocks, self.middle_block, *self.output_blocks)]

    def evaluate(self, x: Tensor, timesteps: Tensor, y: Tensor | None, *inputs) -> Tensor:
        """One evaluation. inputs: what `Block` takes after the embedding."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, *inputs)
            skips.append(x)
        x = self.middle_block(x, emb, *inputs)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, *inputs)
        return self.out(x)


def mlp(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, out), nn.SiLU(), nn.Linear(out, out))
