"""The layers' reshapes: what each index becomes, and no copy where none is needed."""

from __future__ import annotations

import pytest
import torch

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
