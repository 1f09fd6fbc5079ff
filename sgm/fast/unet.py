"""VideoUNet for inference: the same results as the readable modules, in fewer passes over memory.

Each residual stream is kept as `y + offset`. Matrix products are added to y (n, s, c) in place. Terms that are the same
at every pixel of a frame (biases, attention to a single token, positional embeddings) make up offset (n, c), which
every norm adds when it reads y. An offset depends on the condition and the layer alone, so it is computed once a job.
Activations stay channels-last, so that neither branch of a transformer copies them into another layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast.ops import Ops, channels_last, for_device
from sgm.layers.attention import GEGLU, BasicTransformerBlock, CrossAttention, FeedForward, VideoTransformerBlock
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import ResBlock, TemporalConv, Upsample
from sgm.layers.video import AlphaBlender, SpatialVideoTransformer, VideoResBlock
from sgm.unet.unet import Block
from sgm.unet.video_unet import VideoUNet
from sgm.unet.wrapper import OpenAIWrapper

# Values of the largest activations: enough to keep a large GPU busy, in no more memory than decoding needs.
MAX_VALUES = 6 * 10**8


def no_check() -> None:
    """The default `check`: raises nothing."""


class FastUNet:
    """The UNet for inference, called as `OpenAIWrapper`. Immutable, so threads may share it.

    model: with its weights loaded; their memory layout is changed. alphas: the weight of the spatial branch in each
    blend. biases: see `_Biases`.
    """

    def __init__(self, model: OpenAIWrapper) -> None:
        self.model = model
        unet = model.diffusion_model
        self.alphas: dict[nn.Module, float] = {}
        self.biases: dict[nn.Module, _Biases] = {}
        if isinstance(unet, VideoUNet):
            lay_out(unet)
            blenders = [module for module in unet.modules() if isinstance(module, AlphaBlender)]
            self.alphas = {blender: _alpha(blender) for blender in blenders}
            for block in _blocks(unet):
                for layer, next_layer in zip(block, [*list(block)[1:], None], strict=True):
                    if isinstance(layer, VideoResBlock):
                        self.biases[layer] = _Biases(layer, next_layer, 1 - self.alphas[layer.time_mixer])

    def __call__(
        self, x: Tensor, c_noise: Tensor, c: dict[str, Tensor], num_video_frames: int = 1, **inputs: Tensor
    ) -> Tensor:
        """One evaluation, as `OpenAIWrapper.forward`."""
        if inputs or not self.supports(c):
            return self.model(x, c_noise, c, num_video_frames=num_video_frames, **inputs)
        return self.conditioned(c, num_video_frames)(x, c_noise)

    def supports(self, c: dict[str, Tensor]) -> bool:
        """Whether the fast path can be used: for inference, with a context (n, 1, d) of one token."""
        unet, context = self.model.diffusion_model, c.get("crossattn")
        inference = isinstance(unet, VideoUNet) and not unet.training and not torch.is_grad_enabled()
        return inference and context is not None and context.shape[1] == 1

    def conditioned(
        self,
        c: dict[str, Tensor],
        num_video_frames: int,
        max_values: int = MAX_VALUES,
        clip_by_clip: bool = False,
        check: Callable[[], None] = no_check,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The network for one condition, (x, c_noise) -> output. Terms common to all steps are computed here.

        c: as for `OpenAIWrapper.forward`, for (b t) frames. max_values: how many values the largest activations may
        have. clip_by_clip: evaluate the clips of a batch, such as the two of guidance, one after the other: half the
        memory and, where one clip keeps the device busy, hardly more time. check: called before each block; an
        exception that it raises ends the evaluation.
        """
        if not self.supports(c):
            return lambda x, c_noise: self.model(x, c_noise, c, num_video_frames=num_video_frames)
        dtype = next(self.model.parameters()).dtype
        size = num_video_frames if clip_by_clip else len(c["crossattn"])
        contexts = c["crossattn"][:, 0].to(dtype).split(size)
        vectors = c["vector"].to(dtype).split(size) if "vector" in c else [None] * len(contexts)
        clips: list[_Conditioned] = []
        for context, vector in zip(contexts, vectors, strict=True):
            upsample_weights = clips[0].upsample_weights if clips else None
            clips.append(_Conditioned(self, context, vector, num_video_frames, max_values, check, upsample_weights))

        def evaluate(x: Tensor, c_noise: Tensor) -> Tensor:
            h = torch.cat([x, c["concat"]], dim=1) if "concat" in c else x
            h = h.to(dtype=dtype, memory_format=torch.channels_last)
            parts = zip(clips, h.split(size), c_noise.split(size), strict=True)
            out = [clip(part, noise) for clip, part, noise in parts]
            return (out[0] if len(out) == 1 else torch.cat(out)).to(x.dtype)

        return evaluate


class _Biases:
    """Biases of a residual block, (c,), folded into additions that take place anyway.

    spatial, temporal: of a branch's first convolution and its embedding; the branch's second norm adds them. output: of
    the last spatial convolution, the skip connection and two layers that come later and are added without a bias: the
    last temporal convolution (weighted) and a following transformer's `proj_out`. minus_folded: minus those of the two
    layers; the temporal branch's first norm adds it, since they are no part of its input.
    """

    def __init__(self, block: VideoResBlock, next_layer: nn.Module | None, temporal_weight: float) -> None:
        self.spatial, self.temporal = (
            layer_bias(b.emb_layers[1]) + layer_bias(b.in_layers[2]) for b in (block, block.temporal)
        )
        last = layer_bias(block.out_layers[3])
        folded = temporal_weight * layer_bias(block.temporal.out_layers[3]).float()
        if isinstance(next_layer, SpatialVideoTransformer):
            folded = folded + layer_bias(next_layer.proj_out)
        output = folded + last
        if isinstance(block.skip_connection, nn.Conv2d):
            output = output + layer_bias(block.skip_connection)
        self.minus_folded, self.output = -folded.to(last.dtype), output.to(last.dtype)


def _blocks(unet: VideoUNet) -> list[Block]:
    return [cast(Block, block) for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks)]


def _alpha(blender: AlphaBlender) -> float:
    """The weight of the spatial branch."""
    return float(blender.mix_factor if blender.merge_strategy == "fixed" else torch.sigmoid(blender.mix_factor))


def lay_out(unet: VideoUNet) -> None:
    """Change the weights' memory layout in place: convolutions to channels-last; q, k and v into one storage."""
    channels_last(unet)
    with torch.inference_mode(False):
        for module in unet.modules():
            if isinstance(module, BasicTransformerBlock | VideoTransformerBlock):
                parts = _qkv_weights(module.attn1)
                if not _contiguous(parts) and not parts[0].is_inference():
                    for part, value in zip(parts, torch.cat([p.detach() for p in parts]).chunk(3), strict=True):
                        part.data = value


def _qkv_weights(layer: CrossAttention) -> list[Tensor]:
    return [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]


def _contiguous(parts: list[Tensor]) -> bool:
    """Whether three tensors of one shape lie one after the other in one storage, from its start."""
    positions = [(part.untyped_storage()._cdata, part.storage_offset()) for part in parts]
    return positions == [(positions[0][0], i * parts[0].numel()) for i in range(3)]


class _Conditioned:
    """The network for one condition, on n frames of whole clips.

    context: (n, d), the single token of each frame; vector: (n, a) or None. upsample_weights: fused weights computed
    for another clip, which are shared.
    """

    def __init__(
        self,
        network: FastUNet,
        context: Tensor,
        vector: Tensor | None,
        frames: int,
        max_values: int,
        check: Callable[[], None],
        upsample_weights: dict[nn.Module, Tensor] | None,
    ) -> None:
        self.unet = unet = cast(VideoUNet, network.model.diffusion_model)
        self.alphas, self.biases, self.frames, self.check = network.alphas, network.biases, frames, check
        self.ops: Ops = for_device(context.device)
        self.max_values = min(max_values, self.ops.max_chunk)
        self.label = None if vector is None else unet.label_emb(vector)
        self.upsample_weights = upsample_weights or {
            module: self.ops.fused_upsample_weight(module.conv.weight)
            for module in unet.modules()
            if isinstance(module, Upsample)
        }
        transformers = [module for module in unet.modules() if isinstance(module, SpatialVideoTransformer)]
        self.offsets = {layer: self._offsets(layer, context) for layer in transformers}

    def _offsets(self, layer: SpatialVideoTransformer, context: Tensor) -> list[list[Tensor]]:
        """For each of a transformer's blocks, the offsets of its residual streams at each point where they are read.

        (n, c) each: at the spatial feed-forward; on the temporal branch at the first feed-forward, the attention and
        the last feed-forward; at the blend of both branches. Summed in float32, rounded once.
        """
        frames, alpha = self.frames, self.alphas[layer.time_mixer]
        first = context[::frames].repeat_interleave(frames, 0)  # the temporal branch's context: each clip's first frame
        position = timestep_embedding(torch.arange(frames, device=context.device), layer.in_channels)
        position = layer.time_pos_embed(position.to(context.dtype)).repeat(len(context) // frames, 1)
        offsets = []
        for spatial, temporal in zip(layer.transformer_blocks, layer.time_stack, strict=True):
            spatial, temporal = cast(BasicTransformerBlock, spatial), cast(VideoTransformerBlock, temporal)
            offset = _to_one_token(spatial.attn2, context).float() + layer_bias(spatial.attn1.to_out[0])
            points = [offset]
            offset = offset + layer_bias(spatial.ff.net[2])
            offset_t = offset + position
            points.append(offset_t)
            if temporal.ff_in is not None:
                offset_t = offset_t + layer_bias(temporal.ff_in.net[2])
            points.append(offset_t)
            offset_t = offset_t + _to_one_token(temporal.attn2, first) + layer_bias(temporal.attn1.to_out[0])
            points.append(offset_t)
            offset_t = offset_t + layer_bias(temporal.ff.net[2])
            points.append(alpha * offset + (1 - alpha) * offset_t)
            offsets.append([point.to(context.dtype) for point in points])
        return offsets

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(n, c, h, w) channels-last, (n,) -> (n, out_channels, h, w)."""
        unet = self.unet
        emb = unet.time_embed(timestep_embedding(c_noise, unet.model_channels).to(x.dtype))
        emb = F.silu(emb if self.label is None else emb + self.label)
        skips = []
        for block in unet.input_blocks:
            x = self.block(cast(Block, block), [x], emb)
            skips.append(x)
        x = self.block(unet.middle_block, [x], emb)
        for block in unet.output_blocks:
            parts = [x, skips.pop()]
            del x
            x = self.block(cast(Block, block), parts, emb)
        norm, _, conv = unet.out
        return conv(feature_maps(self.ops.group_norm([tokens(x)], cast(nn.GroupNorm, norm)), x.shape[-2:]))

    def block(self, block: Block, parts: list[Tensor], emb: Tensor) -> Tensor:
        """One block. parts: x, split along its channels. The list is emptied, so that memory is freed early."""
        self.check()
        for layer in block:
            if isinstance(layer, VideoResBlock):
                parts.append(self.residual(layer, parts, emb))
            elif isinstance(layer, SpatialVideoTransformer):
                parts.append(self.transformer(layer, parts.pop()))
            elif isinstance(layer, Upsample):
                weight, bias = self.upsample_weights[layer], layer_bias(layer.conv)
                parts.append(self.ops.upsample_conv(parts.pop().permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2))
            else:
                parts.append(layer(parts.pop()))
        return parts.pop()

    def residual(self, block: VideoResBlock, parts: list[Tensor], emb: Tensor) -> Tensor:
        """A spatial and a temporal residual block, blended. The output includes a following transformer's last bias."""
        ops, frames, stack, biases = self.ops, self.frames, block.temporal, self.biases[block]
        size, inputs = parts[0].shape[-2:], [tokens(part) for part in parts]
        parts.clear()
        conv_1, conv_2 = cast(nn.Conv2d, block.in_layers[2]), cast(nn.Conv2d, block.out_layers[3])
        y = ops.group_norm(inputs, cast(nn.GroupNorm, block.in_layers[0]))
        y = tokens(F.conv2d(feature_maps(y, size), conv_1.weight, padding=1))
        y = ops.group_norm([y], cast(nn.GroupNorm, block.out_layers[0]), add=_embedded(block, emb, biases.spatial))
        y, bias = ops.spatial_conv(y.unflatten(1, tuple(size)), conv_2.weight, biases.output)
        skip = inputs[0]
        if isinstance(block.skip_connection, nn.Conv2d):
            weights = block.skip_connection.weight.flatten(1).split([part.shape[2] for part in inputs], dim=1)
            skip = F.linear(inputs[0], weights[0])
            for part, weight in zip(inputs[1:], weights[1:], strict=True):
                skip.flatten(0, 1).addmm_(part.flatten(0, 1), weight.t())
        y = ops.blend(skip, y, 1.0, 1.0, bias, out=y)
        del skip, inputs
        conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
        embedded, temporal_weight = _embedded(stack, emb, biases.temporal), 1 - self.alphas[block.time_mixer]
        step = max(self.max_values // (3 * frames * y[0].numel()), 1) * frames
        for part, add in zip(y.split(step), embedded.split(step), strict=True):
            norm = ops.moments(part).norm(cast(nn.GroupNorm, stack.in_layers[0]), frames, biases.minus_folded)
            z = ops.temporal_conv(part, norm, conv_1, frames)
            norm = ops.moments(z).norm(cast(nn.GroupNorm, stack.out_layers[0]), frames, add)
            ops.temporal_conv(z, norm, conv_2, frames, residual=part, branch_weight=temporal_weight)
        return feature_maps(y, size)

    def transformer(self, layer: SpatialVideoTransformer, x: Tensor) -> Tensor:
        """Attention over pixels and over frames, added to x in place. x includes proj_out's bias (see `_Biases`)."""
        ops, alpha = self.ops, self.alphas[layer.time_mixer]
        y = layer.proj_in(ops.group_norm([tokens(x)], layer.norm, add=-layer_bias(layer.proj_out), silu=False))
        blocks = zip(layer.transformer_blocks, layer.time_stack, self.offsets[layer], strict=True)
        for spatial, temporal, offsets in blocks:
            spatial, temporal = cast(BasicTransformerBlock, spatial), cast(VideoTransformerBlock, temporal)
            at_ff, at_ff_in, at_attention, at_temporal_ff, at_blend = offsets
            qkv = _qkv(ops.layer_norm(y, spatial.norm1), spatial.attn1)
            _add_product(y, ops.attention(qkv, spatial.attn1.heads), spatial.attn1.to_out[0])
            del qkv
            self.feed_forward(y, at_ff, spatial.norm3, spatial.ff)
            z = y.clone()
            if temporal.ff_in is not None and temporal.norm_in is not None:
                self.feed_forward(z, at_ff_in, temporal.norm_in, temporal.ff_in)
            qkv = _qkv(ops.layer_norm(z, temporal.norm1, at_attention), temporal.attn1)
            attended = ops.temporal_attention(qkv, temporal.attn1.heads, self.frames)
            _add_product(z, attended, temporal.attn1.to_out[0])
            del qkv, attended
            self.feed_forward(z, at_temporal_ff, temporal.norm3, temporal.ff)
            y = ops.blend(y, z, alpha, 1 - alpha, at_blend, out=y)
        _add_product(tokens(x), y, layer.proj_out)
        return x

    def feed_forward(self, y: Tensor, offset: Tensor, norm: nn.LayerNorm, layer: FeedForward) -> None:
        """y += the feed-forward layer of norm(y + offset), without its last bias.

        In parts, since the hidden layer has up to eight times as many channels.
        """
        proj, down = cast(GEGLU, layer.net[0]).proj, cast(nn.Linear, layer.net[2])
        step = math.ceil(len(y) / math.ceil(len(y) * y.shape[1] * self.ops.geglu_width(proj) / self.max_values))
        for part, add in zip(y.split(step), offset.split(step), strict=True):
            _add_product(part, self.ops.geglu(self.ops.layer_norm(part, norm, add).flatten(0, 1), proj), down)


def tokens(x: Tensor) -> Tensor:
    """(n, c, h, w), channels-last -> (n, h w, c), the same memory if it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def feature_maps(x: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h w, c) -> (n, c, h, w), channels-last, the same memory. size: (h, w)."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def layer_bias(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.bias)


def _embedded(block: ResBlock, emb: Tensor, bias: Tensor) -> Tensor:
    """The projected embedding plus a bias, (n, c), which is added between a residual block's convolutions."""
    return F.linear(emb, cast(nn.Linear, block.emb_layers[1]).weight, bias)


def _add_product(y: Tensor, x: Tensor, layer: nn.Module) -> None:
    """y += a linear layer of x, in place, without the layer's bias. y: (n, s, c); x: (..., c')."""
    y.flatten(0, 1).addmm_(x.view(-1, x.shape[-1]), cast(nn.Linear, layer).weight.t())


def _to_one_token(layer: CrossAttention, token: Tensor) -> Tensor:
    """Attention to a single token (n, d): its projected value for every query, since softmax over one score is 1."""
    return layer.to_out(layer.to_v(token))


def _qkv(x: Tensor, layer: CrossAttention) -> Tensor:
    """Queries, keys and values from one product: (n, s, c) -> (n, s, 3 c)."""
    parts = _qkv_weights(layer)
    if not _contiguous(parts):  # parameters made in inference mode cannot be moved to another storage
        return F.linear(x, torch.cat(parts))
    return F.linear(x, parts[0].as_strided((3 * len(parts[0]), parts[0].shape[1]), parts[0].stride()))
