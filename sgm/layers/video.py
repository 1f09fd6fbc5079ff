"""The layers that make an image network a video network: a spatial branch, a temporal one, a learned blend of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock, maybe_recomputed
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import GroupNorm, ResBlock, frames_first, frames_in_batch, zeroed


class AlphaBlender(nn.Module):
    """alpha * spatial + (1 - alpha) * temporal, alpha = sigmoid(mix_factor).

    With the strategy "learned_with_images", alpha is 1 on frames that `image_only_indicator` (b, t) marks with 1.
    """

    strategies = ("learned", "learned_with_images", "fixed")

    def __init__(self, alpha: float = 0.5, merge_strategy: str = "learned_with_images") -> None:
        super().__init__()
        if merge_strategy not in self.strategies:
            raise ValueError(f"merge_strategy {merge_strategy!r} is unknown; use one of {', '.join(self.strategies)}.")
        self.merge_strategy = merge_strategy
        if merge_strategy == "fixed":
            self.register_buffer("mix_factor", torch.tensor([alpha]))
        else:
            self.mix_factor = nn.Parameter(torch.tensor([alpha]))

    def alpha(self, image_only_indicator: Tensor | None = None) -> Tensor:
        """The weight of the spatial branch, (1,), or one for each frame, (b t,)."""
        alpha = self.mix_factor if self.merge_strategy == "fixed" else torch.sigmoid(self.mix_factor)
        if self.merge_strategy == "learned_with_images" and image_only_indicator is not None:
            alpha = torch.where(image_only_indicator.flatten().bool(), torch.ones_like(alpha), alpha)
        return alpha

    def forward(self, spatial: Tensor, temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        """spatial, temporal: both (b t, ...). Returns the same shape."""
        alpha = self.alpha(image_only_indicator).to(spatial.dtype)
        return torch.lerp(temporal, spatial, alpha.reshape(-1, *[1] * (spatial.ndim - 1)))


class VideoResBlock(ResBlock):
    """A spatial residual block, then one over frames, blended. x: (b t, c, h, w), emb: (b t, e).

    temporal_name: the attribute, and state-dict key, of the block over frames.
    """

    temporal_name = "time_stack"

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        video_kernel_size: Sequence[int] = (3, 1, 1),
        merge_strategy: str = "learned_with_images",
        merge_factor: float = 0.5,
    ) -> None:
        super().__init__(channels, emb_channels, out_channels, dropout)
        out = channels if out_channels is None else out_channels
        setattr(self, self.temporal_name, ResBlock(out, emb_channels, out, dropout, video_kernel_size))
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)

    @property
    def temporal(self) -> ResBlock:
        return getattr(self, self.temporal_name)

    def forward(self, x: Tensor, emb: Tensor, frames: int, image_only_indicator: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = super().forward(x, emb)
        temporal = self.temporal(frames_first(x, frames), emb)
        return self.time_mixer(x, frames_in_batch(temporal, *x.shape[-2:]), image_only_indicator)


class SpatialVideoTransformer(nn.Module):
    """Attention over the pixels of each frame alternating with attention over the frames of each pixel.

    x: (b t, c, h, w), context: (b t, m, context_dim). The temporal branch attends to the first frame's context.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        dropout: float = 0.0,
        ff_in: bool = False,
        merge_strategy: str = "learned_with_images",
        merge_factor: float = 0.5,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        self.in_channels = in_channels
        self.norm = GroupNorm(32, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, context_dim, dropout) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(inner, in_channels))
        self.time_stack = nn.ModuleList(
            VideoTransformerBlock(inner, n_heads, d_head, context_dim, ff_in, dropout) for _ in range(depth)
        )
        self.time_pos_embed = nn.Sequential(
            nn.Linear(in_channels, in_channels * 4), nn.SiLU(), nn.Linear(in_channels * 4, in_channels)
        )
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        frames: int,
        image_only_indicator: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """recompute: keep for the backward pass what goes into each attention over pixels and over frames alone."""
        y = x
        for depth in range(len(self.time_stack)):
            y = maybe_recomputed(recompute, self._over_pixels, depth, y, context)
            settings = frames, image_only_indicator, recompute
            y = maybe_recomputed(recompute, self._over_frames, depth, x, y, context, *settings)
        return y

    def _over_pixels(self, depth: int, x: Tensor, context: Tensor | None) -> Tensor:
        """The depth-th spatial block, projection before the first. x: as given at depth 0, then (b t, h w, inner)."""
        if depth == 0:
            x = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        return self.transformer_blocks[depth](x, context)

    def _over_frames(
        self,
        depth: int,
        x: Tensor,
        y: Tensor,
        context: Tensor | None,
        frames: int,
        image_only_indicator: Tensor | None,
        recompute: bool,
    ) -> Tensor:
        """The depth-th temporal block of y, blended with y; after the last, projected and added to x.

        recompute: as of VideoTransformerBlock; not while torch.compile traces, with which it was not tried.
        """
        h, w = x.shape[-2:]
        time_context = None if context is None else context[::frames]  # (b, m, c)
        position = timestep_embedding(torch.arange(frames, device=x.device), self.in_channels).to(y.dtype)
        position = self.time_pos_embed(position)  # (t, c)
        z = rearrange(y, "(b t) s c -> b s t c", t=frames) + position
        nested = recompute and not torch.compiler.is_compiling()
        z = self.time_stack[depth](rearrange(z, "b s t c -> (b s) t c"), time_context, nested)
        z = rearrange(z, "(b s) t c -> (b t) s c", s=h * w)
        y = self.time_mixer(y, z, image_only_indicator)
        if depth + 1 < len(self.time_stack):
            return y
        return x + rearrange(self.proj_out(y), "n (h w) c -> n c h w", h=h, w=w)
