"""Training of the autoencoder: its encoder and temporal decoder, or the decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.conditioning.camera import identity_rays
from sgm.engine import DiffusionEngine
from sgm.training.perceptual import PerceptualDistance
from sgm.training.tasks import Task, encoder_of
from sgm.weights import to_channels_last


class AutoencoderTask(Task):
    """Encoder and temporal decoder together, on short clips; with `train.encoder` false the decoder alone.

    Besides reconstructing its frames, for a share of the clips the decoder must reconstruct frame t from the *first*
    frame's latents, warped along the camera's rays: so latents are equivariant to motion (cf. EQ-VAE,
    arXiv:2502.09509), which is how the video network moves them. Noise on the latents, drawn for each frame, and a
    penalty on `flicker` teach the decoder temporal consistency, one on `Peaks` to draw no spots.
    """

    def __init__(self, engine: DiffusionEngine, data: Mapping[str, Any], train: Mapping[str, Any]) -> None:
        super().__init__(engine, data, train)
        self.encoder: Any = encoder_of(engine)
        self.decoder: Any = engine.first_stage_model.decoder
        self.train_encoder = bool(train.get("encoder", True))  # else the decoder alone
        self.distance = PerceptualDistance(train["perceptual"]) if train.get("perceptual") else None
        engine.requires_grad_(False)
        for parameter in self.trained():
            parameter.requires_grad_(True)
        self.peaks = Peaks(self.decoder) if train.get("peak_weight") else None
        to_channels_last(engine)
        if train["compile"]:
            self.encoder.compile(dynamic=False)
            self.decoder.compile(dynamic=False)

    def trained(self) -> list[nn.Parameter]:
        return [*(self.encoder.parameters() if self.train_encoder else ()), *self.decoder.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.go_to_draw(batch_idx, batch_idx)
        self.seed("batch", batch_idx)
        clips = self.draw(self.train_config["batch"])
        n, frames = clips.video.shape[:2]
        pixels = clips.video.flatten(0, 1).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.train_encoder):
            mean, logvar = self.encoder(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 5)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        moved, inside = self.moved(z.unflatten(0, (n, frames)), clips.rays)
        noise = self.train_config["latent_noise"] * torch.rand(n, device=self.device).repeat_interleave(frames).view(
            -1, 1, 1, 1
        )
        z = moved + noise * z.detach().std() * torch.randn_like(z)
        out = self.decoder(z.to(memory_format=torch.channels_last), frames).float()
        mask = F.interpolate(inside, scale_factor=8)
        target = torch.lerp(out.detach(), pixels, mask)
        pixel = ((out - target).abs() + 10 * (out - target).square()).mean() / mask.mean().clamp(min=0.1)
        loss = pixel + self.train_config["kl"] * kl
        if self.distance is not None:
            quarter = torch.randperm(len(out), device=self.device)[: max(len(out) // 4, 1)]  # saves memory
            loss = loss + self.train_config["perceptual_weight"] * self.distance(out[quarter], target[quarter]).mean()
        if weight := self.train_config.get("flicker_weight"):
            flickering = flicker(out.unflatten(0, (n, frames)), clips.rays)
            loss = loss + weight * flickering
            self.log("flicker", flickering, prog_bar=True)
        if self.peaks:
            peak = self.peaks.penalty()
            loss = loss + self.train_config["peak_weight"] * peak
            self.log("peak", peak, prog_bar=True)
        self.log_dict({"loss": loss, "pixel": pixel, "kl": kl}, prog_bar=True)
        self.log("psnr", -10 * ((out.detach() - target).square().mean() / mask.mean() / 4).log10(), prog_bar=True)
        return self.checked(loss)

    def moved(self, z: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
        """For a share of the clips, warp the first frame's latents along the rays of each frame.

        z: (n, t, c, h, w), rays: (n, t, 2, h, w). -> latents ((n t), c, h, w), and a mask, 1 where they are valid.
        """
        n, frames, _, h, w = z.shape
        chosen = (torch.rand(n, device=z.device) < self.train_config["moved_share"]) & ~rays.isnan().flatten(1).any(
            dim=1
        )
        rays = rays.nan_to_num()
        grid = _grid(rays.flatten(0, 1))
        first = z[:, :1].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        warped = F.grid_sample(first, grid.to(z), padding_mode="border", align_corners=False)
        edge = 1 - 0.5 / torch.tensor([w, h], device=z.device)
        valid = (grid.abs() <= edge).all(dim=-1)[:, None].float()
        pick = chosen.repeat_interleave(frames).view(-1, 1, 1, 1)
        return torch.where(pick, warped, z.flatten(0, 1)), torch.where(pick, valid, torch.ones_like(valid))

    @torch.no_grad()
    def finish(self) -> None:
        """Use the averaged weights, then rescale them so that each latent channel has unit variance."""
        super().finish()
        if not self.train_encoder:
            return
        self.to("cuda" if torch.cuda.is_available() else "cpu")
        self.seed("scale", 0)
        z = torch.cat([self.encoder(self.draw(8).video[:, 0]).chunk(2, dim=1)[0].float() for _ in range(16)])
        std = z.square().mean(dim=(0, 2, 3)).sqrt()
        self.encoder.conv_out.weight[: len(std)] /= std.view(-1, 1, 1, 1)
        self.encoder.conv_out.bias[: len(std)] /= std
        self.encoder.conv_out.bias[len(std) :] -= 2 * std.log()  # the log-variances
        self.decoder.conv_in.weight *= std.view(1, -1, 1, 1)


class Peaks:
    """A penalty on single pixels at which a decoder's activations are many times as large as elsewhere.

    A decoder may set the scale of its group norms by one, and then draws a spot there: StyleGAN's droplets (Karras et
    al. 2020, arXiv:1912.04958). Noted at the input of each group norm of `decoder`.
    """

    usual = 20.0  # the largest energy of a pixel, over the frame's mean, that costs nothing

    def __init__(self, decoder: nn.Module) -> None:
        self.values: list[Tensor] = []
        for module in decoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, inputs: self.note(inputs[0]))

    def note(self, x: Tensor) -> None:
        """x: (n, c, h, w), or a clip's (b, c, t, s)."""
        energy = x.float().square().mean(dim=1).flatten(1)
        self.values.append((energy.amax(1) / energy.mean(1).clamp(min=1e-12) / self.usual).clamp(min=1).log().mean())

    def penalty(self) -> Tensor:
        """The mean logarithm of what is above `usual`, over the group norms since the last call."""
        penalty = torch.stack(self.values).mean()
        self.values.clear()
        return penalty


def flicker(video: Tensor, rays: Tensor) -> Tensor:
    """Mean absolute second difference over time after motion compensation (cf. Lai et al. 2018, arXiv:1808.00449).

    video: (n, t, c, h, w), t of 3 or more; rays: (n, t, 2, h / f, w / f), along which each frame's neighbours are
    warped to its pixels. Clips with an unknown camera (NaN) and pixels outside the neighbours are left out.
    """
    valid = ~rays.isnan().flatten(1).any(dim=1)
    video, rays = video[valid], rays[valid]
    if not len(video) or video.shape[1] < 3:
        return video.sum() * 0
    h, w = video.shape[-2:]
    middle, inside = video[:, 1:-1].flatten(0, 1), torch.ones((), device=video.device)
    difference = -2 * middle
    for neighbour in (slice(None, -2), slice(2, None)):  # the frames before and after
        own_rays, neighbour_rays = rays[:, 1:-1].flatten(0, 1), rays[:, neighbour].flatten(0, 1)
        points = identity_rays(*rays.shape[-2:]).to(rays).expand_as(own_rays)
        for _ in range(4):  # fixed-point iteration for the neighbour's pixel that shows the same point
            sampled = F.grid_sample(neighbour_rays, _grid(points), padding_mode="border", align_corners=False)
            points = points + own_rays - sampled
        grid = _grid(F.interpolate(points, size=(h, w), mode="bilinear")).to(video)
        inside = inside * (grid.abs() < 0.95).all(dim=-1)[:, None]
        difference = difference + F.grid_sample(video[:, neighbour].flatten(0, 1), grid, "bicubic", align_corners=False)
    return (difference.abs() * inside).sum() / (inside.sum() * video.shape[2]).clamp(min=1)


def _grid(points: Tensor) -> Tensor:
    """Points (n, 2, h, w) in units of the width -> the grid for `grid_sample`, (n, h, w, 2)."""
    h, w = points.shape[-2:]
    return torch.stack([points[:, 0] * 2, points[:, 1] * 2 * w / h], dim=-1)
