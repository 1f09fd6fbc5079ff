"""The layers' reshapes: what each index becomes, and no copy where none is needed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sgm.layers.attention import GEGLU
from sgm.layers.residual import frames_first, frames_in_batch


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frames_first_is_a_view_and_back_gives_the_same(layout: torch.memory_format) -> None:
    x = torch.randn(6, 4, 5, 7).to(memory_format=layout)
    y = frames_first(x, frames=3)
    assert y.shape == (2, 4, 3, 35)
    assert torch.equal(y[1, :, 2, 8], x[5, :, 1, 1])
    back = frames_in_batch(y, 5, 7)
    assert torch.equal(back, x)
    assert y.data_ptr() == back.data_ptr() == x.data_ptr()


def test_what_a_convolution_over_frames_gives_comes_back_channels_last() -> None:
    y = torch.randn(2, 4, 3, 35)
    x = frames_in_batch(y, 5, 7)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x[5, :, 1, 1], y[1, :, 2, 8])
    z = y.to(memory_format=torch.channels_last)
    assert frames_in_batch(z, 5, 7).data_ptr() == z.data_ptr()


def test_the_gate_of_a_feed_forward_layer_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = GEGLU(3, 4).double(), torch.randn(11, 5, 3, dtype=torch.float64, requires_grad=True)
    value, gate = layer.proj(x).chunk(2, dim=-1)
    plain, result, grad = value * F.gelu(gate), layer(x), torch.randn(11, 5, 4, dtype=torch.float64)
    assert torch.equal(result, plain)
    of = x, layer.proj.weight
    expected = torch.autograd.grad(plain, of, grad)
    for found, right in zip(torch.autograd.grad(result, of, grad, retain_graph=True), expected, strict=True):
        assert_close(found, right, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="inplace"):  # the first pass wrote over what a second would need
        torch.autograd.grad(result, of, grad)
