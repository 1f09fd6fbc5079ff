"""VideoUNet: Stable Diffusion's UNet with temporal layers (Blattmann et al. 2023, arXiv:2311.15127)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sgm.layers.video import SpatialVideoTransformer, VideoResBlock
from sgm.unet.unet import UNet


class VideoUNet(UNet):
    """The denoising network of Stable Video Diffusion and SV3D. shape: the parameters of `UNet`."""

    def __init__(
        self,
        model_channels: int,
        num_head_channels: int = 64,
        context_dim: int | None = None,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        extra_ff_mix_layer: bool = False,
        merge_strategy: str = "learned_with_images",
        merge_factor: float = 0.5,
        video_kernel_size: Sequence[int] = (3, 1, 1),
        **shape: Any,
    ) -> None:
        merge = merge_strategy, merge_factor

        def residual(channels: int, out: int) -> VideoResBlock:
            return VideoResBlock(channels, 4 * model_channels, out, dropout, video_kernel_size, *merge)

        def transformer(channels: int) -> SpatialVideoTransformer:
            heads = channels // num_head_channels, num_head_channels
            return SpatialVideoTransformer(
                channels, *heads, transformer_depth, context_dim, dropout, extra_ff_mix_layer, *merge
            )

        super().__init__(residual, transformer, model_channels=model_channels, **shape)
        self.context_dim = context_dim

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
        return self.evaluate(x, timesteps, y, context, num_video_frames, image_only_indicator)
