"""The autoencoders of official YAMLs: encoder, regularizer, decoder, with or without 1x1 convolutions between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.autoencoder.coders import Decoder, Encoder, VideoDecoder
from sgm.config import instantiate_from_config


class DiagonalGaussianRegularizer(nn.Module):
    """Moments (n, 2c, h, w), mean and log-variance, -> a sample, or the mode when `sample` is false: (n, c, h, w)."""

    def __init__(self, sample: bool = True) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, logvar = moments.chunk(2, dim=1)
        if not self.sample:
            return mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise


class AutoencodingEngine(nn.Module):
    """An autoencoder whose encoder, regularizer and decoder have a config each.

    `moments(x)`: pictures (n, 3, h, w) in [-1, 1] -> mean and log-variance (n, 2c, h / f, w / f);
    `encode(x)`: -> latents (n, c, h / f, w / f); `decode(z, timesteps)`: back, `timesteps` frames a clip.
    check: called before each of the encoder's blocks; an exception that it raises ends the work.
    """

    def __init__(
        self,
        *,
        encoder_config: Mapping[str, Any],
        decoder_config: Mapping[str, Any],
        regularizer_config: Mapping[str, Any],
        **unused: Any,  # losses and monitors of the original's training
    ) -> None:
        super().__init__()
        self.encoder = instantiate_from_config(encoder_config)
        self.decoder = instantiate_from_config(decoder_config)
        self.regularization = instantiate_from_config(regularizer_config)

    @property
    def can_encode(self) -> bool:
        return isinstance(self.encoder, Encoder)

    def moments(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        return self.encoder(x, check)

    def encode(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        return self.regularization(self.moments(x, check))

    def to_decoder(self, z: Tensor) -> Tensor:
        """Latents -> the decoder's input."""
        return z

    def decode(self, z: Tensor, timesteps: int = 1) -> Tensor:
        return self.decoder(self.to_decoder(z), timesteps)


class AutoencoderKL(AutoencodingEngine):
    """The autoencoder of Stable Diffusion 1 and 2, given by one `ddconfig`; 1x1 convolutions around the latents."""

    def __init__(self, *, embed_dim: int, ddconfig: Mapping[str, Any], sample: bool = True, **unused: Any) -> None:
        nn.Module.__init__(self)
        z = ddconfig["z_channels"]
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * z, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z, 1)
        self.regularization = DiagonalGaussianRegularizer(sample)

    def moments(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        return self.quant_conv(self.encoder(x, check))

    def to_decoder(self, z: Tensor) -> Tensor:
        return self.post_quant_conv(z)


class AutoencoderKLModeOnly(AutoencoderKL):
    """AutoencoderKL whose `encode` gives the mode."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "sample": False})


__all__ = [
    "AutoencoderKL",
    "AutoencoderKLModeOnly",
    "AutoencodingEngine",
    "Decoder",
    "DiagonalGaussianRegularizer",
    "Encoder",
    "VideoDecoder",
]
