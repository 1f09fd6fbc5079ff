"""Training tasks: the autoencoder, then the video network on its latents."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sgm.conditioning.camera import identity_rays
from sgm.conditioning.conditioner import GeneralConditioner
from sgm.config import instantiate_from_config
from sgm.engine import DTYPES, DiffusionEngine, build_engine, copy_to, default_dtype, widen_encoders
from sgm.errors import UserError
from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock
from sgm.training.clips import Clips, open_clips
from sgm.training.course import Course
from sgm.training.data import ClipBatch, PictureClips, join
from sgm.training.logs import log
from sgm.training.optimizers import optimizer, schedule
from sgm.training.perceptual import PerceptualDistance
from sgm.training.sharding import divided, shard, whole
from sgm.training.thrift import park, recompute
from sgm.weights import load_weights, to_channels_last

logger = logging.getLogger(__name__)

_LOG_EVERY = 20  # batches
_TOWER = "cond_frames_without_noise"  # the input key of the image tower


class Task(lightning.LightningModule):
    """Base of tasks: data, optimizer, learning rate, exponential moving average (EMA) of the trained parameters.

    The learning rate warms up, stays constant, and falls to zero over the last `decay` (a share) of the run, which ends
    after `minutes` or `steps`, those before its checkpoint among them. `ema` 0: no averaging. All that is drawn at
    random is a function of the seed, the process and the number of the batch, so that a run that goes on from a
    checkpoint makes the steps of one that was never stopped.
    """

    def __init__(self, engine: DiffusionEngine, data: Mapping[str, Any], train: Mapping[str, Any]) -> None:
        super().__init__()
        self.strict_loading = False  # frozen parameters are not in checkpoints: `init` or the seed gives them again
        self.engine = engine
        self.data, self.train_config = data, train
        self.size = (int(data["height"]), int(data["width"]))
        self.pictures: PictureClips | None = None
        self.clips: Clips | None = None
        self.ema: list[Tensor] = []
        self.started = self.seconds = self.elapsed = 0.0  # seconds: of the run before its checkpoint
        self.course = Course()

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that this task trains."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        data = self.data
        if data.get("pictures"):
            self.pictures = PictureClips(
                data["pictures"],
                self.size,
                tuple(data["canvas"]),
                data.get("holdout") or (),
                tuple(data["motion_bucket"]),
                data.get("masks"),
                data.get("composed", 0.25),
            )
        if data.get("clips") and (self.pictures is None or data["clips_share"] > 0):
            self.clips = open_clips(
                data["clips"],
                self.size,
                logger.warning if self.global_rank == 0 else lambda line: None,
                order=lambda: f"seed {self.train_config['seed']}, step {self.global_step}",
                part=self.global_rank,
                parts=self.trainer.world_size,
            )

    def seed(self, what: str, number: int) -> None:
        """Seed torch's random numbers, for the number-th of what is drawn with them next."""
        text = f"{what} {number}, process {self.global_rank}, seed {self.train_config['seed']}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def draw(self, n: int, warped: bool = False) -> ClipBatch:
        """n new clips on the training device. warped: see `PictureClips.draw`."""
        frames, batches = self.data["frames"], []
        real = 0 if self.clips is None else n if self.pictures is None else round(n * self.data["clips_share"])
        if self.pictures is not None and n > real:
            batches.append(self.pictures.draw(n - real, frames, self.device, warped))
        if self.clips is not None and real:
            batches.append(self.clips.draw(real, frames, self.device))
        return join(batches)

    def configure_optimizers(self) -> Any:
        of = optimizer(self.trained(), self.train_config)
        course = schedule(of, self.train_config)
        return {"optimizer": of} | ({"lr_scheduler": {"scheduler": course, "interval": "step"}} if course else {})

    def train_dataloader(self) -> Iterable[int]:
        return torch.utils.data.DataLoader(range(10**9), batch_size=None, num_workers=0)  # pyright: ignore[reportArgumentType]

    def on_train_start(self) -> None:
        self.started, self.course = time.monotonic() - self.seconds, Course()
        if not self.ema and self.train_config["ema"]:
            self.ema = [p.detach().clone() for p in self.trained()]
        self.ema = [divided(value, p) for value, p in zip(self.ema, self.trained(), strict=True)] if self.ema else []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        config = self.train_config
        if config["minutes"] and (batch_idx % 20 == 0 or not self.elapsed):  # all processes must end at the same step
            passed = (time.monotonic() - self.started) / 60 / config["minutes"]
            self.elapsed = self.trainer.strategy.broadcast(passed)
        elapsed = max(self.elapsed, self.global_step / (config["steps"] or math.inf))
        rise = min((self.global_step + 1) / config["warmup"], 1.0)
        fall = min(max(1 - elapsed, 0.0) / config["decay"], 1.0)
        for group in self.optimizers().param_groups if config["schedule"] is None else ():  # pyright: ignore[reportAttributeAccessIssue]
            group["lr"] = config["lr"] * rise * fall
        if elapsed >= 1:
            self.trainer.should_stop = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.course.batches += 1
        if (batch_idx + 1) % _LOG_EVERY == 0:
            clips = self.train_config["batch"] * self.trainer.world_size
            lr = self.optimizers().param_groups[0]["lr"]  # pyright: ignore[reportAttributeAccessIssue]
            log(self.trainer, {"lr": lr, **self.course.take(clips, self.device)})
        if not self.ema or (batch_idx + 1) % self.train_config["accumulate"]:
            return
        decay = min(self.train_config["ema"], (1 + self.global_step) / (10 + self.global_step))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self.ema, [p.detach() for p in self.trained()], 1 - decay
        )

    def checked(self, loss: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The loss. Raises UserError, which ends the training, where it is no number. sigma: of the step's clips."""
        if loss.isfinite():
            return loss
        at = "" if sigma is None else f", at sigma {', '.join(f'{value:.3g}' for value in sigma.tolist())}"
        raise self._diverged(f"The loss of step {self.global_step + 1} is {float(loss.detach())}{at}")

    def _diverged(self, what: str) -> UserError:
        last = Path(self.trainer.default_root_dir, "last.ckpt")
        kept = f"{last} is from before, and stays" if last.exists() else "There is no checkpoint yet"
        return UserError(
            f"{what}: the training has diverged. {kept}. Lower train.lr, or set train.precision=32-true, and look at "
            "the clips."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained()):
            raise self._diverged(f"After step {self.global_step} a weight is no number")
        checkpoint["optimizer"] = self.train_config["optimizer"]["target"]
        checkpoint["ema"], checkpoint["seconds"] = whole(self.ema), time.monotonic() - self.started
        trained = {id(p) for p in self.trained()}
        names = {name for name, p in self.named_parameters() if id(p) in trained}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema, self.seconds = checkpoint["ema"], checkpoint.get("seconds", 0.0)

    def result(self, out: Path, model: Path) -> Path:
        """Where in the folder `out` the result goes. model: the YAML."""
        return out / f"{model.stem}.safetensors"

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write the result. config: the whole training config. What is frozen comes from `init` as it is there."""
        if config["init"] is None:
            return save_engine(self.engine, str(path))
        engine = build_engine(config["model"])
        load_weights(engine, config["init"], torch.device("cpu"), torch.float16)
        trained = {id(parameter) for parameter in self.trained()}
        for name, parameter in self.engine.named_parameters():
            if id(parameter) in trained:
                engine.get_parameter(name).copy_(parameter.detach())
        save_engine(engine, str(path))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving averages in the weights' place, if there are any; afterwards all is as it was, to the last bit."""

        def exchange() -> None:
            for i, parameter in enumerate(self.trained() if self.ema else ()):
                self.ema[i], parameter.data = parameter.data, self.ema[i]

        exchange()
        try:
            yield
        finally:
            exchange()

    def sampler(self) -> DiffusionEngine:
        """A copy of the model for inference, with the averaged weights."""
        with self.averaged():
            engine = self.copied()
            for module in engine.modules():
                module._compiled_call_impl = None  # the original's
            return engine.freeze()

    def copied(self) -> DiffusionEngine:
        """The engine's copy in the device's usual dtype for inference; on a processor it may share the weights."""
        dtype = DTYPES[default_dtype(self.device)]
        engine: DiffusionEngine = copy_to(self.engine, self.device, dtype)
        widen_encoders(engine, dtype)
        return engine

    def finish(self) -> None:
        """Replace the weights by their moving averages, if there are any."""
        with torch.no_grad():
            for parameter, value in zip(self.trained(), self.ema, strict=True) if self.ema else ():
                parameter.copy_(value)


class AutoencoderTask(Task):
    """Encoder and temporal decoder together, on short clips; with `train.encoder` false the decoder alone.

    Besides reconstructing its frames, for a share of the clips the decoder must reconstruct frame t from the *first*
    frame's latents, warped along the camera's rays: so latents are equivariant to motion (cf. EQ-VAE,
    arXiv:2502.09509), which is how the video network moves them. Noise on the latents, drawn for each frame, and a
    penalty on `flicker` teach the decoder temporal consistency.
    """

    def __init__(self, engine: DiffusionEngine, data: Mapping[str, Any], train: Mapping[str, Any]) -> None:
        super().__init__(engine, data, train)
        self.encoder: Any = _encoder(engine)
        self.decoder: Any = engine.first_stage_model.decoder
        self.train_encoder = bool(train.get("encoder", True))  # else the decoder alone
        self.distance = PerceptualDistance(train["perceptual"]) if train.get("perceptual") else None
        engine.requires_grad_(False)
        for parameter in self.trained():
            parameter.requires_grad_(True)
        to_channels_last(engine)
        if train["compile"]:
            self.encoder.compile(dynamic=False)
            self.decoder.compile(dynamic=False)

    def trained(self) -> list[nn.Parameter]:
        return [*(self.encoder.parameters() if self.train_encoder else ()), *self.decoder.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
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
        self.seed("scale", 0)
        z = torch.cat([self.encoder(self.draw(8).video[:, 0]).chunk(2, dim=1)[0].float() for _ in range(16)])
        std = z.square().mean(dim=(0, 2, 3)).sqrt()
        self.encoder.conv_out.weight[: len(std)] /= std.view(-1, 1, 1, 1)
        self.encoder.conv_out.bias[: len(std)] /= std
        self.encoder.conv_out.bias[len(std) :] -= 2 * std.log()  # the log-variances
        self.decoder.conv_in.weight *= std.view(1, -1, 1, 1)


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


class VideoTask(Task):
    """The video network on latents, and the image tower, if its config says `is_trainable`.

    `train.only` "temporal" trains the temporal layers alone; `train.checkpointing`, a share of the blocks, recomputes
    activations in the backward pass (gradient checkpointing), which saves most of the memory. Reading and encoding cost
    as much as a training step, so encoded clips, with their embedding by the image tower unless that is trained, are
    stored in a pool on the device, from which each batch is drawn with new noise; `fresh` of them are replaced at every
    step. Where that is 0, autoencoder and tower leave the device once the pool is full.
    """

    def __init__(self, engine: DiffusionEngine, data: Mapping[str, Any], train: Mapping[str, Any]) -> None:
        super().__init__(engine, data, train)
        self.loss = instantiate_from_config(train["loss_config"])
        self.conditioner: GeneralConditioner = engine.conditioner
        self.camera = "camera" in self.conditioner.input_keys
        tower = self.embedder(_TOWER)
        self.tower = tower.open_clip.model if any(p.requires_grad for p in tower.parameters()) else None
        engine.requires_grad_(False)
        for parameter in self.trained():
            parameter.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            self.tower = None
        recompute(engine.model.diffusion_model, float(train["checkpointing"]))
        self.pool: dict[str, Tensor] = {}
        to_channels_last(engine)
        if train["compile"]:
            engine.model.diffusion_model.compile(dynamic=False)
            _encoder(engine).compile(dynamic=False)

    def on_train_start(self) -> None:
        super().on_train_start()
        park(self.engine.first_stage_model.decoder)

    def configure_model(self) -> None:
        if self._device_mesh is not None:  # with train.strategy=fsdp
            shard(self.engine.model.diffusion_model, self._device_mesh["data_parallel"])

    def embedder(self, key: str) -> Any:
        return self.conditioner.embedders[self.conditioner.input_keys.index(key)]

    def trained(self) -> list[nn.Parameter]:
        network = self.engine.model.diffusion_model
        # With a single context token these parameters have no effect (see CrossAttention).
        unused = {
            id(p)
            for block in network.modules()
            if isinstance(block, BasicTransformerBlock | VideoTransformerBlock)
            for part in (block.norm2, block.attn2.to_q, block.attn2.to_k)
            for p in part.parameters()
        }
        only = self.train_config.get("only")
        temporal = (".time_stack.", ".time_mixer.", ".time_pos_embed.")
        parameters = [
            p
            for name, p in network.named_parameters()
            if id(p) not in unused and (only is None or any(part in name for part in temporal))
        ]
        if self.tower is not None and only is None:
            text = ("token_embedding", "positional_embedding", "text_projection", "ln_final", "logit_scale")
            parameters += [p for name, p in self.tower.named_parameters() if not name.startswith(text)]
        return parameters

    @torch.no_grad()
    def encode(self, n: int) -> dict[str, Tensor]:
        """n new clips, encoded for the pool."""
        clips = self.draw(n, warped=self.camera)
        cond_aug = torch.exp(-3.7 + 0.5 * torch.randn(n, device=self.device)).clamp(max=1)
        unknown = torch.rand(n, device=self.device) < self.train_config.get("camera_dropout", 0)
        unknown = unknown.view(-1, 1, 1, 1, 1)
        cond = clips.video[:, :1]
        if self.camera:
            cond = torch.where(unknown, cond.expand_as(clips.video), clips.warped)
        cond = cond + cond_aug.view(-1, 1, 1, 1, 1) * torch.randn_like(cond)
        batch = {
            "z": self.in_parts(self.engine.encode, clips.video).half(),
            "cond_frames": self.in_parts(self.embedder("cond_frames"), cond).half(),
            _TOWER: self.seen_by_tower(clips.video[:, 0]),
            "fps_id": clips.fps_id,
            "motion_bucket_id": clips.motion_bucket_id,
            "cond_aug": cond_aug,
            "known": clips.known.to(torch.uint8),
        }
        return {**batch, "camera": torch.where(unknown, torch.nan, clips.rays)} if self.camera else batch

    def seen_by_tower(self, pictures: Tensor) -> Tensor:
        """What the pool holds of pictures (n, 3, h, w): themselves, uint8, or the frozen tower's (n, copies, 1, d)."""
        if self.tower is not None:
            return ((pictures + 1) * 127.5).round().to(torch.uint8)
        return self.embedder(_TOWER)(pictures).unflatten(0, (len(pictures), -1))

    @staticmethod
    def in_parts(encode: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
        """Encode (n, t, 3, h, w) -> (n, t, c, h / f, w / f), in parts of a bounded number of pixels."""
        frames = video.flatten(0, 1).to(memory_format=torch.channels_last)
        parts = frames.split(max(2**25 // frames[0].numel(), 1))
        return torch.cat([encode(part) for part in parts]).unflatten(0, video.shape[:2])

    def refill(self, batch_idx: int) -> None:
        """Have the pool hold the draws from number batch_idx on, each in its place: all of them, or the newest anew."""
        renewed, filled = self.train_config["fresh"], bool(self.pool)
        if filled and not renewed:
            return
        fresh = max(renewed, 1)
        places = self.train_config["pool"] // fresh
        first = batch_idx if renewed else 0
        for number in range(first + places - 1 if filled else first, first + places):
            self.seed("clips", number)
            clips = self.encode(fresh)
            if not self.pool:
                self.pool = {k: v.new_empty(places * fresh, *v.shape[1:]) for k, v in clips.items()}
            place = number % places * fresh
            for key, value in clips.items():
                self.pool[key][place : place + fresh] = value
        if not renewed:
            tower = self.embedder(_TOWER) if self.tower is None else None
            park(self.embedder("cond_frames"), self.engine.first_stage_model, tower)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.refill(batch_idx)
        self.seed("batch", batch_idx)
        chosen = torch.randint(len(self.pool["z"]), (self.train_config["batch"],), device=self.device)
        clips = {key: value[chosen] for key, value in self.pool.items()}
        z, known = clips.pop("z").float(), clips.pop("known").float()
        frames = z.shape[1]
        embedded = {"cond_frames": clips.pop("cond_frames").float().flatten(0, 1)}
        if self.tower is None:
            embedded[_TOWER] = clips.pop(_TOWER).flatten(0, 1)
        else:
            clips[_TOWER] = clips[_TOWER].float() / 127.5 - 1
        if self.camera:
            clips["camera"] = clips["camera"].flatten(0, 1)
        cond = self.conditioner(clips, embedded)
        n = z.shape[0] * frames
        cond = {key: value.repeat_interleave(n // len(value), dim=0) for key, value in cond.items()}
        sigma, losses = self.loss.of_clips(
            self.engine.model,
            self.engine.denoiser,
            cond,
            z.flatten(0, 1),
            num_video_frames=frames,
            known=known.flatten(0, 1),
        )
        self.course.note(sigma, losses)
        self.log("loss", losses.mean(), prog_bar=True)
        return self.checked(losses.mean(), sigma)


TASKS: dict[str, type[Task]] = {"autoencoder": AutoencoderTask, "video": VideoTask}


def _encoder(engine: DiffusionEngine) -> nn.Module:
    """The encoder of the network's latents."""
    if engine.first_stage_model.can_encode:
        return engine.first_stage_model.encoder
    return next(e.encoder.encoder for e in engine.conditioner.embedders if hasattr(e, "encoder"))


def save_engine(engine: DiffusionEngine, path: str) -> None:
    """Write all weights in float16, as a .safetensors file."""
    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in engine.state_dict().items()}
    save_file(state, path)
