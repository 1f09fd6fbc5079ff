"""FastUNet: the network for inference, called as the readable one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sgm.fast.conditioned import Biases, Conditioned
from sgm.fast.graph import Checks, Recorded
from sgm.fast.ops import Ops, channels_last, for_clip
from sgm.fast.shard import Ranks
from sgm.fast.torch_ops import contiguous, qkv_weights
from sgm.fast.views import ConditionedViews
from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock
from sgm.layers.video import AlphaBlender, VideoResBlock
from sgm.unet.unet import UNet
from sgm.unet.video_unet import VideoUNet
from sgm.unet.view_unet import SpatialUNetModelWithTime
from sgm.unet.wrapper import OpenAIWrapper

# Values of the largest activations: enough to keep a large GPU busy, in no more memory than decoding needs.
MAX_VALUES = 6 * 10**8
_KINDS: dict[type, type[Conditioned]] = {VideoUNet: Conditioned, SpatialUNetModelWithTime: ConditionedViews}


def no_check() -> None:
    """The default `check`: raises nothing."""


def no_load(block: nn.Module) -> None:
    """The default `load`: all weights are there."""


class FastUNet:
    """The UNet for inference, called as `OpenAIWrapper`. Threads may share it.

    model: with its weights loaded; their memory layout is changed. load(block): called before a block's weights are
    read, where they come when they are needed (see `sgm.streaming`). alphas, biases: see `Conditioned`. recorded: what
    was learnt of evaluations, see `Recorded`. Clips with float8 products that overlap in time share converted weights.
    """

    def __init__(self, model: OpenAIWrapper, load: Callable[[nn.Module], None] | None = None) -> None:
        self.model, self.load = model, load or no_load
        unet = model.diffusion_model
        self.alphas: dict[nn.Module, float] = {}
        self.biases: dict[nn.Module, Biases] = {}
        self.recorded: dict[tuple[int, ...], bool] = {}
        self._eight_bit: WeakValueDictionary[torch.device, Ops] = WeakValueDictionary()
        if isinstance(unet, UNet):
            if load is None:
                lay_out(unet)
            for block in unet.blocks:
                self.load(block)
                blenders = [module for module in block.modules() if isinstance(module, AlphaBlender)]
                self.alphas |= {blender: _alpha(blender) for blender in blenders}
                for layer, next_layer in zip(block, [*list(block)[1:], None], strict=True):
                    if isinstance(layer, VideoResBlock):
                        self.biases[layer] = Biases(layer, next_layer, 1 - self.alphas[layer.time_mixer])

    def __call__(
        self, x: Tensor, c_noise: Tensor, c: dict[str, Tensor], num_video_frames: int = 1, **inputs: Tensor
    ) -> Tensor:
        """One evaluation, as `OpenAIWrapper.forward`."""
        if inputs or not self.supports(c):
            return self.model(x, c_noise, c, num_video_frames=num_video_frames, **inputs)
        return self.conditioned(c, num_video_frames)(x, c_noise)

    def supports(self, c: dict[str, Tensor]) -> bool:
        """Whether the fast path can be used: for inference, with a context of one token for each frame or time."""
        unet, context = self.model.diffusion_model, c.get("crossattn")
        if type(unet) not in _KINDS or unet.training or torch.is_grad_enabled() or context is None:
            return False
        return isinstance(unet, SpatialUNetModelWithTime) or context.shape[1] == 1

    def conditioned(
        self,
        c: dict[str, Tensor],
        num_video_frames: int,
        max_values: int = MAX_VALUES,
        clip_by_clip: bool = False,
        check: Callable[[], None] = no_check,
        ranks: Ranks | None = None,
        record: bool = False,
        cache_interval: int = 1,
        evaluations: int | None = None,
        fp8: bool = False,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The network for one condition, (x, c_noise) -> output. Terms common to all steps are computed here.

        c: as for `OpenAIWrapper.forward`, for (b t) frames. max_values: how many values the largest activations may
        have. clip_by_clip: evaluate the clips of a batch, such as the two of guidance, one after the other: half the
        memory and, where one clip keeps the device busy, hardly more time. check: called before each block; an
        exception that it raises ends the evaluation. ranks: processes that all make this call, and divide the work.
        record: launch by CUDA graphs where that is faster (see `Recorded`), at the cost of some memory. cache_interval:
        the whole network is evaluated every so many times; in between, its shallow blocks alone, on what the deep ones
        gave last (DeepCache, arXiv:2312.00858), which is faster and not exact. evaluations: how many there will be, if
        that is known: the last, whose noise is least and to which the network adds least, is then not a whole one.
        fp8: with float8 products (see `sgm.fast.fp8_ops`) where the device has them and all weights are there; it takes
        a byte more for most weights.
        """
        if not self.supports(c):
            return lambda x, c_noise: self.model(x, c_noise, c, num_video_frames=num_video_frames)
        unet = cast(UNet, self.model.diffusion_model)
        dtype, kind = next(self.model.parameters()).dtype, _KINDS[type(unet)]
        inputs = {key: value.to(dtype) for key, value in c.items() if key != "concat"}
        rows = len(c["vector" if "vector" in c else "crossattn"])
        ranks = ranks or Ranks()
        parts = rows // num_video_frames if clip_by_clip or ranks.size > 1 else 1
        mine, shard = ranks.share(parts, num_video_frames, kind.divisible)
        checks = Checks(check)
        ops = for_clip(c["crossattn"].device, fp8 and self.load is no_load, self._eight_bit)
        join = self.load is no_load and not clip_by_clip  # 0.1 GiB of SVD's, where memory is not scarce
        clips: list[Conditioned] = []
        for i in mine:
            own = {key: value.chunk(parts)[i] for key, value in inputs.items()}
            other = clips[0] if clips else None
            settings = shard, max_values, checks.check, self.load, other, join, ops
            clips.append(kind(unet, self.alphas, self.biases, own, *settings))

        def evaluate(whole: bool, x: Tensor, c_noise: Tensor) -> Tensor:
            h = torch.cat([x, c["concat"]], dim=1) if "concat" in c else x
            h = h.to(dtype=dtype, memory_format=torch.channels_last)
            pieces = list(zip(h.chunk(parts), c_noise.chunk(parts), strict=True))
            out = [clip(*pieces[i], whole, keep=cache_interval > 1) for clip, i in zip(clips, mine, strict=True)]
            return ranks.joined(out, parts, shard).to(x.dtype)

        # Recording the exchanges of several clips failed on GPUs.
        can_record = c["crossattn"].is_cuda and (shard.size == 1 or len(mine) == 1)
        variants = [partial(evaluate, whole) for whole in (True, False)]
        if record and can_record:
            key = parts, len(mine), shard.frames, max_values
            known = {} if fp8 else self.recorded  # weights are converted in a clip's first evaluation
            variants = [
                Recorded(variant, checks, shard.size > 1, known, (*key, i)) for i, variant in enumerate(variants)
            ]
        numbers, last = count(), evaluations - 1 if evaluations and cache_interval > 1 else 0

        def next_evaluation(x: Tensor, c_noise: Tensor) -> Tensor:
            number = next(numbers)
            return variants[number % cache_interval > 0 or 0 < number == last](x, c_noise)

        return next_evaluation


def _alpha(blender: AlphaBlender) -> float:
    """The weight of the spatial branch."""
    return float(blender.mix_factor if blender.merge_strategy == "fixed" else torch.sigmoid(blender.mix_factor))


def lay_out(unet: UNet) -> None:
    """Change the weights' memory layout in place: convolutions to channels-last; q, k and v into one storage."""
    channels_last(unet)
    with torch.inference_mode(False):
        for module in unet.modules():
            if isinstance(module, BasicTransformerBlock | VideoTransformerBlock):
                parts = qkv_weights(module.attn1)
                if not contiguous(parts) and not parts[0].is_inference():
                    for part, value in zip(parts, torch.cat([p.detach() for p in parts]).chunk(3), strict=True):
                        part.data = value
