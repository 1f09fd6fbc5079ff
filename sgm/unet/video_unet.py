"""VideoUNet: Stable Diffusion's UNet with temporal layers (Blattmann et al. 2023, arXiv:2311.15127)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import Downsample, GroupNorm, Upsample, zeroed
from sgm.layers.video import SpatialVideoTransformer, VideoResBlock


class Block(nn.Sequential):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: gives each layer the inputs that it takes."""

    use_checkpoint = False

    def run(self, x: Tensor, emb: Tensor, context: Tensor | None, frames: int, image_only: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, VideoResBlock):
                x = layer(x, emb, frames, image_only)
            elif isinstance(layer, SpatialVideoTransformer):
                x = layer(x, context, frames, image_only)
            else:
                x = layer(x)
        return x

    def forward(self, x: Tensor, *args) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.use_checkpoint and self.training:
            return checkpoint(self.run, x, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self.run(x, *args)


class VideoUNet(nn.Module):
    """The denoising network. Parameters carry the official YAMLs' names.

    attention_resolutions: downsampling factors at which transformers stand. num_classes: "sequential" (a vector
    condition of `adm_in_channels`) or None. use_checkpoint: trade compute for memory while training.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_head_channels: int = 64,
        context_dim: int | None = None,
        transformer_depth: int = 1,
        num_classes: str | None = None,
        adm_in_channels: int | None = None,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        use_linear_in_transformer: bool = True,
        extra_ff_mix_layer: bool = False,
        use_spatial_context: bool = True,
        merge_strategy: str = "learned_with_images",
        merge_factor: float = 0.5,
        video_kernel_size: Sequence[int] = (3, 1, 1),
        spatial_transformer_attn_type: str = "softmax",
    ) -> None:
        super().__init__()
        if not use_linear_in_transformer or not use_spatial_context:
            raise ValueError("VideoUNet needs use_linear_in_transformer and use_spatial_context to be true.")
        if num_classes not in (None, "sequential"):
            raise ValueError(f"num_classes must be 'sequential' or left out; got {num_classes!r}.")
        if not spatial_transformer_attn_type.startswith("softmax"):
            raise ValueError(f"spatial_transformer_attn_type must be 'softmax'; got {spatial_transformer_attn_type!r}.")
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.context_dim, self.vector_channels = context_dim, adm_in_channels if num_classes else None
        emb_channels = model_channels * 4
        self.time_embed = _mlp(model_channels, emb_channels)
        if num_classes == "sequential":
            if adm_in_channels is None:
                raise ValueError("num_classes 'sequential' needs adm_in_channels, the length of the vector condition.")
            self.label_emb = nn.Sequential(_mlp(adm_in_channels, emb_channels))

        def res(channels: int, out: int) -> VideoResBlock:
            return VideoResBlock(channels, emb_channels, out, dropout, video_kernel_size, merge_strategy, merge_factor)

        def transformer(channels: int) -> SpatialVideoTransformer:
            heads = channels // num_head_channels
            return SpatialVideoTransformer(
                channels,
                heads,
                num_head_channels,
                transformer_depth,
                context_dim,
                dropout,
                extra_ff_mix_layer,
                merge_strategy,
                merge_factor,
            )

        def level(channels: int, out: int, factor: int) -> list[nn.Module]:
            return [res(channels, out), *([transformer(out)] if factor in attention_resolutions else [])]

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

        self.middle_block = Block(res(channels, channels), transformer(channels), res(channels, channels))

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

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        num_video_frames: int = 1,
        image_only_indicator: Tensor | None = None,
    ) -> Tensor:
        """One evaluation.

        x: (b t, in_channels, h, w), h and w multiples of the deepest factor; timesteps (c_noise): (b t,);
        context: (b t, m, context_dim); y: (b t, adm_in_channels); image_only_indicator: (b, t), 1 for frames without
        temporal layers. Returns (b t, out_channels, h, w).
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        args = (emb, context, num_video_frames, image_only_indicator)
        skips = []
        for block in self.input_blocks:
            x = block(x, *args)
            skips.append(x)
        x = self.middle_block(x, *args)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), *args)
        return self.out(x)


def _mlp(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, out), nn.SiLU(), nn.Linear(out, out))
