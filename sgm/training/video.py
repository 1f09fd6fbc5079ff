"""Training of the video network on latents, from a pool of encoded clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.conditioning.conditioner import GeneralConditioner
from sgm.config import instantiate_from_config
from sgm.engine import DiffusionEngine
from sgm.layers.attention import BasicTransformerBlock, VideoTransformerBlock
from sgm.training.recorded import GraphedNetwork
from sgm.training.sharding import shard
from sgm.training.tasks import Task, encoder_of
from sgm.training.thrift import fuse_layers, park, recompute
from sgm.weights import to_channels_last

_TOWER = "cond_frames_without_noise"  # the input key of the image tower


class VideoTask(Task):
    """The video network on latents, and the image tower, if its config says `is_trainable`.

    `train.only` "temporal" trains the temporal layers alone; `train.checkpointing`, a share of the blocks, recomputes
    activations in the backward pass (gradient checkpointing), which saves most of the memory. Reading and encoding cost
    as much as a training step, so encoded clips, with their embedding by the image tower unless that is trained, are
    stored in a pool on the device, from which each batch is drawn with new noise; `fresh` of them are replaced at every
    step, or one at every 1 / `fresh`-th. Where that is 0, autoencoder and tower leave the device once the pool is full.
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
        self.recorded: GraphedNetwork | None = None
        to_channels_last(engine)
        if train["compile"]:
            encoder_of(engine).compile(dynamic=False)

    def on_train_start(self) -> None:
        super().on_train_start()
        network = self.engine.model.diffusion_model
        fuse_layers(network, self.data["frames"])
        draws = any(isinstance(module, nn.Dropout) and module.p for module in network.modules())
        divided = self.train_config["strategy"] == "fsdp"
        if self.device.type == "cuda" and not (draws or divided or self.tower):
            self.recorded = GraphedNetwork(self.engine.model, self.trained())
        park(self.engine.first_stage_model.decoder, self.embedder(_TOWER).open_clip.model.token_embedding)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not (self.recorded and self.recorded.zero()):
            optimizer.zero_grad()

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
        """Have the pool hold the draws from that of batch batch_idx on, each in its place: all, or the newest anew."""
        renewed, filled = self.train_config["fresh"], bool(self.pool)
        every = round(1 / renewed) if 0 < renewed < 1 else 1  # batches
        if filled and (not renewed or batch_idx % every):
            return
        fresh = max(int(renewed), 1)
        places = self.train_config["pool"] // fresh
        first = batch_idx // every if renewed else 0
        for number in range(first + places - 1 if filled else first, first + places):
            self.go_to_draw(number, first)
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
            self.recorded or self.engine.model,
            self.engine.denoiser,
            cond,
            z.flatten(0, 1),
            num_video_frames=frames,
            known=known.flatten(0, 1),
        )
        self.course.note(sigma, losses)
        self.log("loss", losses.mean(), prog_bar=True)
        return self.checked(losses.mean(), sigma)
