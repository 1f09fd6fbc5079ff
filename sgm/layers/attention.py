"""Attention and feed-forward layers, and the two transformer blocks built from them.

Attribute names are those of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def maybe_recomputed(recompute: bool, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) of a function, if `recompute`: function(*inputs).

    Of the function's activations only the inputs are kept then; the backward pass computes the others anew.
    """
    if recompute:
        # A CUDA graph, whose recording may not ask for the random numbers' state, is of what draws none.
        recording = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        return cast(Tensor, checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=not recording))
    return function(*inputs)


_PARTS = 8  # chunks in which a gate's backward pass computes, so that its temporary tensors are an eighth as large


class _Gate(torch.autograd.Function):
    """GEGLU's gating, x · GELU(gate), of a tensor (..., 2 n) that holds x and gate: all that the backward pass keeps.

    As separate operations, gating keeps GELU's output as well, and its backward pass takes twice the memory. Here that
    pass writes the gradient over the tensor, which nothing else may need: a second pass raises a RuntimeError.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        x, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        # In the place of what is not needed any more; compiled code may not write there.
        out = torch.empty_like(both) if torch.compiler.is_compiling() else both
        parts = (tensor.tensor_split(_PARTS) for tensor in (both, grad, out))
        for inputs, of_result, of_both in zip(*parts, strict=True):
            x, gate = inputs.chunk(2, dim=-1)
            of_gate = torch.ops.aten.gelu_backward(of_result * x, gate)
            torch.mul(of_result, F.gelu(gate), out=of_both.chunk(2, dim=-1)[0])
            of_both.chunk(2, dim=-1)[1].copy_(of_gate)
        return out


class GEGLU(nn.Module):
    """Linear layer gated by a GELU of its second half (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Gate.apply(self.proj(x)))


class FeedForward(nn.Module):
    """GEGLU, then back to `dim`. x: (b, n, dim)."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * mult), nn.Dropout(dropout), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention to a context, or to x itself. x: (b, n, query_dim), context: (b, m, context_dim)."""

    def __init__(
        self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns (b, n, query_dim); (b, 1, query_dim), to be broadcast, when the context is a single token."""
        if context is not None and context.shape[1] == 1:
            return self.to_out(self.to_v(context))  # the softmax over one token is 1, whatever the query
        source = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (heads dim_head) -> b heads n dim_head", heads=self.heads)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b heads n dim_head -> b n (heads dim_head)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention over the pixels of a frame, cross-attention to the context, feed-forward. x: (b t, h w, dim)."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head, dropout)
        self.ff = FeedForward(dim, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class VideoTransformerBlock(nn.Module):
    """A transformer block over the frames of one pixel, `ff_in` before it. x: (b s, t, dim), context: (b, m, c)."""

    def __init__(
        self, dim: int, heads: int, dim_head: int, context_dim: int | None, ff_in: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.ff_in = FeedForward(dim, dropout=dropout) if ff_in else None
        self.norm_in = nn.LayerNorm(dim) if ff_in else None
        self.attn1 = CrossAttention(dim, None, heads, dim_head, dropout)
        self.ff = FeedForward(dim, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None, recompute: bool = False) -> Tensor:
        """recompute: gradient checkpointing of `ff_in`, so that its activations are never held beside those of `ff`."""
        pixels = 1 if context is None else x.shape[0] // context.shape[0]
        if self.ff_in is not None and self.norm_in is not None:
            x = x + maybe_recomputed(recompute, self.ff_in, self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        if context is not None and context.shape[1] == 1:
            x = x + self.attn2(x, context).repeat_interleave(pixels, dim=0)
        else:
            x = x + self.attn2(self.norm2(x), None if context is None else context.repeat_interleave(pixels, dim=0))
        return x + self.ff(self.norm3(x))
