"""SpatialUNetModelWithTime: the network of SV4D (arXiv:2407.17470) and SV4D 2.0 (arXiv:2503.16396)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sgm.layers.views import ViewTimeResBlock, ViewTimeTransformer
from sgm.unet.unet import UNet


class SpatialUNetModelWithTime(UNet):
    """Denoises the frames of several views at several times. Parameters carry the official YAMLs' names.

    motion_context_dim: channels of the views' latents. use_camera_emb, use_3d_attention, separate_motion_merge_factor:
    `camera_emb`, `neighbours`, `motion_mixer` of `ViewTimeTransformer`. shape: the parameters of `UNet`; legacy and
    replicate_time_mix_bug change nothing, and of the other switches the official values alone are known.
    """

    def __init__(
        self,
        model_channels: int,
        context_dim: int,
        motion_context_dim: int,
        adm_in_channels: int,
        num_head_channels: int = 64,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        extra_ff_mix_layer: bool = False,
        time_block_merge_strategy: str = "learned_with_images",
        time_block_merge_factor: float = 0.5,
        time_kernel_size: Sequence[int] = (3, 1, 1),
        use_motion_attention: bool = False,
        use_camera_emb: bool = False,
        use_3d_attention: bool = False,
        separate_motion_merge_factor: bool = False,
        use_spatial_transformer: bool = True,
        time_mix_legacy: bool = True,
        legacy: bool = False,
        replicate_time_mix_bug: bool = False,
        **shape: Any,
    ) -> None:
        if time_mix_legacy or not use_motion_attention or not use_spatial_transformer or transformer_depth != 1:
            raise ValueError(
                "Known are networks with time_mix_legacy false, use_motion_attention and use_spatial_transformer true, "
                "and a transformer_depth of 1, as SV4D's are."
            )
        emb_channels = 4 * model_channels
        if use_camera_emb and adm_in_channels != emb_channels:
            raise ValueError(
                f"use_camera_emb needs adm_in_channels to be four times model_channels, {emb_channels}; "
                f"got {adm_in_channels}."
            )
        merge = time_block_merge_strategy, time_block_merge_factor

        def residual(channels: int, out: int) -> ViewTimeResBlock:
            return ViewTimeResBlock(channels, emb_channels, out, dropout, time_kernel_size, *merge)

        def transformer(channels: int) -> ViewTimeTransformer:
            return ViewTimeTransformer(
                channels,
                channels // num_head_channels,
                num_head_channels,
                context_dim,
                motion_context_dim,
                emb_channels,
                dropout,
                extra_ff_mix_layer,
                *merge,
                camera_emb=use_camera_emb,
                neighbours=use_3d_attention,
                motion_mixer=separate_motion_merge_factor,
            )

        super().__init__(residual, transformer, model_channels=model_channels, adm_in_channels=adm_in_channels, **shape)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        cond_view: Tensor,
        num_video_frames: int,
        cond_motion: Tensor | None = None,
        image_only_indicator: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of b clips of t times and v views.

        x: (b t v, in_channels, h, w), time first, h and w multiples of the deepest factor; timesteps (c_noise):
        (b t v,); context: one token a time, (b, t, context_dim); y: (b t v, adm_in_channels); cond_view: a latent of
        each view, all at one time, (b v, motion_context_dim, h, w); num_video_frames: t v. As in the original, no layer
        reads cond_motion and image_only_indicator. Returns (b t v, out_channels, h, w).
        """
        return self.evaluate(x, timesteps, y, context, num_video_frames, None, cond_view)
