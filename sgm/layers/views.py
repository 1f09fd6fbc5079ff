"""The layers of a network for clips of several views: the frames of t times and v views in one row, time first.

SV4D (Xie et al. 2024, arXiv:2407.17470) and SV4D 2.0 (Yao et al. 2025, arXiv:2503.16396). The frame of view j at time i
has index i v + j. Attribute names are those of the official checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import GroupNorm, zeroed
from sgm.layers.video import AlphaBlender, VideoResBlock


class ViewTimeResBlock(VideoResBlock):
    """A VideoResBlock whose row of frames holds all times and views.

    Its convolution over frames runs on from the last view of a time to the first of the next.
    """

    temporal_name = "time_mix_blocks"


class ViewTimeTransformer(nn.Module):
    """Attention over the pixels of each frame, then over views (the camera block), then over times (the motion block).

    camera_emb: the camera block is told a view by the network's embedding of its frames, else by the view's number.
    neighbours: the camera block's sequences are neighbouring pixels, see `camera`. motion_mixer: the motion block has
    a blend factor of its own, else the camera block's.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        context_dim: int,
        motion_context_dim: int,
        emb_channels: int,
        dropout: float = 0.0,
        ff_in: bool = False,
        merge_strategy: str = "learned_with_images",
        merge_factor: float = 0.5,
        camera_emb: bool = False,
        neighbours: bool = False,
        motion_mixer: bool = False,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        shape = inner, n_heads, d_head
        self.in_channels, self.camera_emb, self.neighbours = in_channels, camera_emb, neighbours
        self.norm = GroupNorm(32, in_channels, eps=1e-6)
        self.proj_in = nn.Linear(in_channels, inner)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(*shape, context_dim, dropout)])
        self.time_mix_blocks = nn.ModuleList([VideoTransformerBlock(*shape, context_dim, ff_in, dropout)])
        self.motion_blocks = nn.ModuleList([VideoTransformerBlock(*shape, motion_context_dim, ff_in, dropout)])
        self.time_mix_time_embed = _embed(emb_channels if camera_emb else in_channels, in_channels)
        self.time_mix_motion_embed = _embed(in_channels, in_channels)
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)
        self.time_mixer_motion = AlphaBlender(merge_factor, merge_strategy) if motion_mixer else None
        self.proj_out = zeroed(nn.Linear(inner, in_channels))

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, views: Tensor) -> Tensor:
        """x: (b t v, in_channels, h, w), emb: (b t v, emb_channels), context: one token a time, (b, t, context_dim).

        views: a latent of each view, all at one time, (b v, motion_context_dim, h', w').
        """
        h, w = x.shape[-2:]
        y = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        per_frame = context.flatten(0, 1).repeat_interleave(len(x) // context.shape[:2].numel(), 0)
        y = self.transformer_blocks[0](y, per_frame[:, None])
        y = self.time_mixer(y, self.camera(y + self.camera_embedding(emb, context)[:, None], context))
        z = self.motion(y + self.motion_embedding(emb, context)[:, None], context, self.motion_context(views, h, w))
        y = (self.time_mixer_motion or self.time_mixer)(y, z)
        return x + rearrange(self.proj_out(y), "n (h w) c -> n c h w", h=h, w=w)

    def camera(self, y: Tensor, context: Tensor) -> Tensor:
        """The camera block: attention over the views of each pixel. y: (b t v, s, c).

        With `neighbours`, as it was trained in SV4D 2.0 (`use_3d_attention`): a time's pixels of all views, in one row,
        are cut into sequences of v, which are neighbours in a view and not views of a pixel; where v does not divide s,
        some lie in two views. The sequences are numbered time by time within a cut but take their tokens as if they
        were numbered cut by cut within a time, and so those of other times.
        """
        (b, t), s = context.shape[:2], y.shape[1]
        tokens, block = rearrange(context, "b t d -> (b t) 1 d"), self.time_mix_blocks[0]
        if not self.neighbours:
            y = block(rearrange(y, "(bt v) s c -> (bt s) v c", bt=b * t), tokens)
            return rearrange(y, "(bt s) v c -> (bt v) s c", s=s)
        v = len(y) // (b * t)
        y = rearrange(y, "(b t v) s c -> b t (v s) c", b=b, t=t)
        y = block(rearrange(y, "b t (cut v) c -> (b cut t) v c", v=v), tokens)
        y = rearrange(y, "(b cut t) v c -> b t (cut v) c", b=b, t=t)
        return rearrange(y, "b t (v s) c -> (b t v) s c", s=s)

    def motion(self, y: Tensor, context: Tensor, tokens: Tensor) -> Tensor:
        """The motion block: attention over the times of each pixel. y: (b t v, s, c), tokens: (b v s, 1, d)."""
        (b, t), s = context.shape[:2], y.shape[1]
        y = self.motion_blocks[0](rearrange(y, "(b t v) s c -> (b v s) t c", b=b, t=t), tokens)
        return rearrange(y, "(b v s) t c -> (b t v) s c", b=b, s=s)

    def camera_embedding(self, emb: Tensor, context: Tensor) -> Tensor:
        """What the camera block is told of each frame's view: (b t v, c)."""
        b, t = context.shape[:2]
        of_views = rearrange(emb, "(b t v) e -> b t v e", b=b, t=t)[:, :1]
        if not self.camera_emb:
            numbers = torch.arange(of_views.shape[2], device=emb.device)
            of_views = timestep_embedding(numbers, self.in_channels).to(emb.dtype).expand(b, 1, -1, -1)
        # With camera_emb: that of the first time for all times, and with the noise level in it.
        return repeat(self.time_mix_time_embed(of_views), "b 1 v c -> (b t v) c", t=t)

    def motion_embedding(self, emb: Tensor, context: Tensor) -> Tensor:
        """What the motion block is told of each frame's time: (b t v, c)."""
        b, t = context.shape[:2]
        times = timestep_embedding(torch.arange(t, device=emb.device), self.in_channels).to(emb.dtype)
        return repeat(self.time_mix_motion_embed(times), "t c -> (b t v) c", b=b, v=len(emb) // (b * t))

    def motion_context(self, views: Tensor, h: int, w: int) -> Tensor:
        """The motion block's token of each view and pixel: (b v, d, h', w') -> (b v h w, 1, d)."""
        views = F.interpolate(views, (h, w), mode="bilinear")
        return rearrange(views, "n d h w -> (n h w) 1 d")


def _embed(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 4 * out), nn.SiLU(), nn.Linear(4 * out, out))
