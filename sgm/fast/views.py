"""The network for several views, for one condition: as `Conditioned`, with attention over views and over times.

Its attentions to the condition are collapsed, too, as each has one token: those of the spatial and, without
`neighbours`, the camera block are offsets; the others differ from pixel to pixel and are added in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sgm.fast.conditioned import Blend, Conditioned, Transformer, branch_offsets, layer_bias, to_one_token
from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock
from sgm.layers.views import ViewTimeTransformer

_MOST_SEQUENCES = 2**15  # of one call of attention: CUDA counts blocks along all axes but one in 16 bits


class ConditionedViews(Conditioned):
    """As `Conditioned`, on n = (b t v) frames. c: "crossattn" (b, t, d), "cond_view" (b v, d', h, w), "vector" (n, a).

    emb: the network's embedding, of which and so of the noise level each camera block is told its views.
    """

    divisible = False

    def __init__(self, unet: Any, alphas: Any, biases: Any, c: Mapping[str, Tensor], *settings: Any) -> None:
        self.context, self.views = c["crossattn"], c["cond_view"]
        self.b, self.t = self.context.shape[:2]
        self.v = len(c["vector"]) // (self.b * self.t)
        self.emb: Tensor
        super().__init__(unet, alphas, biases, c, *settings)

    def offsets_of(self, layer: Transformer, c: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """[[of the spatial block: at its feed-forward, at its end; tokens of the camera block (b t, c)]], float32."""
        spatial, camera = layer.transformer_blocks[0], cast(Any, layer).time_mix_blocks[0]
        spatial, context = cast(BasicTransformerBlock, spatial), self.context.flatten(0, 1)
        of_frames = to_one_token(spatial.attn2, context).repeat_interleave(self.v, 0)
        at_ff = of_frames.float() + layer_bias(spatial.attn1.to_out[0])
        return [[at_ff, at_ff + layer_bias(spatial.ff.net[2]), to_one_token(camera.attn2, context).float()]]

    def begin(self, emb: Tensor) -> None:
        self.emb = emb

    def attend(self, layer: Transformer, y: Tensor, size: Sequence[int]) -> Blend:
        assert isinstance(layer, ViewTimeTransformer)
        spatial = cast(BasicTransformerBlock, layer.transformer_blocks[0])
        camera, motion = (cast(VideoTransformerBlock, b[0]) for b in (layer.time_mix_blocks, layer.motion_blocks))
        ((at_ff, offset, tokens),) = self.offsets[layer]
        self.over_pixels(y, spatial, at_ff.to(y.dtype))

        alpha, of_views = self.alphas[layer.time_mixer], layer.camera_embedding(self.emb, self.context)
        at_view = offset + of_views
        if layer.neighbours:
            *points, last = branch_offsets(camera, at_view, 0.0)
            token = tokens.to(y.dtype).unflatten(0, (self.b, self.t))
            z = self.branch(y, camera, _as(points, y), self._among_neighbours, lambda z: self._add_tokens(z, token))
        else:
            *points, last = branch_offsets(camera, at_view, tokens.repeat_interleave(self.v, 0))
            z = self.branch(y, camera, _as(points, y), self._among_views)
        y = self.ops.blend(y, z, alpha, 1 - alpha, (alpha * offset + (1 - alpha) * last).to(y.dtype), out=y)
        del z

        alpha = self.alphas[layer.time_mixer_motion or layer.time_mixer]
        # y holds its offset by now, so the branch begins with the embedding of the times alone.
        at_time = layer.motion_embedding(of_views, self.context).float()
        *points, last = branch_offsets(motion, at_time, 0.0)
        z = self.branch(y, motion, _as(points, y), self._over_times, lambda z: self._add_views(z, layer, size))
        return y, z, alpha, 1 - alpha, ((1 - alpha) * last).to(y.dtype)

    def _among_views(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention among the views of each pixel at a time. qkv: (n, s, 3 c) -> (n, s, c)."""
        return self.ops.temporal_attention(qkv, heads, self.v)

    def _among_neighbours(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention within runs of v tokens of a time's row of (view, pixel), see `ViewTimeTransformer.camera`."""
        runs = qkv.view(-1, self.v, qkv.shape[2])
        parts = [self.ops.attention(part, heads) for part in runs.split(_MOST_SEQUENCES)]
        return torch.cat(parts).view(*qkv.shape[:2], -1)

    def _over_times(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention over the times of each view's pixels."""
        rows = qkv.view(self.b * self.t, -1, qkv.shape[2])  # a time's row of (view, pixel)
        return self.ops.temporal_attention(rows, heads, self.t).view(*qkv.shape[:2], -1)

    def _add_tokens(self, z: Tensor, token: Tensor) -> None:
        """Add to each run the token that `ViewTimeTransformer.camera` gives it. token: (b, t, c)."""
        rows = z.view(self.b, self.t, -1, z.shape[2])  # a time's row of (view, pixel)
        cuts, pixels = rows.shape[2] // self.v, z.shape[1]
        of_cut = torch.arange(cuts, device=z.device) * self.t
        for time in range(self.t):
            given = ((of_cut + time) // pixels).repeat_interleave(self.v)
            rows[:, time] += token[:, given]

    def _add_views(self, z: Tensor, layer: ViewTimeTransformer, size: Sequence[int]) -> None:
        """Add what the motion block takes of each view's pixel, at all times."""
        motion = cast(VideoTransformerBlock, layer.motion_blocks[0])
        token = to_one_token(motion.attn2, layer.motion_context(self.views, *size)[:, 0]).view(self.b, -1, z.shape[2])
        rows = z.view(self.b, self.t, -1, z.shape[2])
        for time in range(self.t):
            rows[:, time] += token


def _as(points: list[Tensor], y: Tensor) -> list[Tensor]:
    return [point.to(y.dtype) for point in points]
