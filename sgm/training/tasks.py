"""What all training tasks have in common: data, optimizer, learning rate, moving averages, checkpoints, the result."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor, nn

from sgm.engine import DTYPES, DiffusionEngine, build_engine, copy_to, default_dtype, widen_encoders
from sgm.errors import UserError
from sgm.formats.files import write_tensors
from sgm.training.clips import Clips, open_clips
from sgm.training.course import Course
from sgm.training.data import ClipBatch, PictureClips, join
from sgm.training.logs import bytes_bar, log
from sgm.training.optimizers import optimizer, schedule
from sgm.training.sharding import Averaged, average, divided, gathered, whole
from sgm.weights import load_weights

logger = logging.getLogger(__name__)

_LOG_EVERY = 20  # batches


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
        self.places: dict[int, Sequence[int]] = {}  # of shards: where the clips of the latest draws come from
        self.ema: list[Tensor] = []
        self.started = self.seconds = self.elapsed = 0.0  # seconds: of the run before its checkpoint
        self.course = Course()
        self.unchecked: tuple[int, Tensor, torch.cuda.Event | None] | None = None  # a loss, and its step

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
                data.get("recoloured", 0.0),
            )
        if data.get("clips") and (self.pictures is None or data["clips_share"] > 0):
            self.clips = open_clips(
                data["clips"],
                self.size,
                logger.warning if self.global_rank == 0 else lambda line: None,
                seed=self.train_config["seed"],
                part=self.global_rank,
                parts=self.trainer.world_size,
            )

    def seed(self, what: str, number: int) -> None:
        """Seed torch's random numbers, for the number-th of what is drawn with them next."""
        text = f"{what} {number}, process {self.global_rank}, seed {self.train_config['seed']}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def go_to_draw(self, number: int, oldest: int) -> None:
        """Have the clips of the number-th draw come next, as before a stop. oldest: of those that are still needed."""
        if self.clips is None:
            return
        if place := self.places.get(number):
            self.clips.go_to(place)
        self.places = {n: place for n, place in self.places.items() if n >= oldest} | {number: self.clips.next}

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

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.train_config["precision"] == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:  # Lightning's own refuses fused optimizers, for the sake of gradients that are scaled
            nn.utils.clip_grad_norm_(list(self.trained()), gradient_clip_val or 1.0)

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

    def on_after_backward(self) -> None:
        last = (self.trainer.fit_loop.batch_idx + 1) % self.train_config["accumulate"] == 0
        if last and isinstance(self.trainer.strategy, Averaged):
            average(
                [parameter.grad for parameter in self.trained() if parameter.grad is not None],
                torch.distributed.group.WORLD,
            )

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
        """The loss. Raises UserError, which ends the training, where it is no number. sigma: of the step's clips.

        On a GPU that is the loss of the batch before, for which nothing has to wait.
        """
        self.check_loss()
        values = torch.cat([loss.detach()[None], *([] if sigma is None else [sigma])])
        copied = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        self.unchecked = self.global_step + 1, copied, torch.cuda.Event() if values.is_cuda else None
        if self.unchecked[2] is None:
            self.check_loss()
        else:
            self.unchecked[2].record()
        return loss

    def check_loss(self) -> None:
        """Raise UserError where the latest loss that was not yet looked at is no number."""
        if self.unchecked is None:
            return
        (step, values, copied), self.unchecked = self.unchecked, None
        if copied:
            copied.synchronize()
        loss, *sigma = values.tolist()
        if not math.isfinite(loss):
            at = f", at sigma {', '.join(f'{value:.3g}' for value in sigma)}" if sigma else ""
            raise self._diverged(f"The loss of step {step} is {loss}{at}")

    def _diverged(self, what: str) -> UserError:
        last = Path(self.trainer.default_root_dir, "last.ckpt")
        kept = f"{last} is from before, and stays" if last.exists() else "There is no checkpoint yet"
        return UserError(
            f"{what}: the training has diverged. {kept}. Lower train.lr, or set train.precision=32-true, and look at "
            "the clips."
        )

    def on_train_end(self) -> None:
        self.check_loss()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_loss()
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained()):
            raise self._diverged(f"After step {self.global_step} a weight is no number")
        checkpoint["optimizer"] = self.train_config["optimizer"]["target"]
        checkpoint["ema"], checkpoint["seconds"] = whole(self.ema), time.monotonic() - self.started
        if self.clips and self.clips.next:
            places = {**self.places, max(self.places, default=-1) + 1: self.clips.next}
            checkpoint["places"] = gathered({number: list(place) for number, place in places.items()})
        trained = {id(p) for p in self.trained()}
        names = {name for name, p in self.named_parameters() if id(p) in trained}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema, self.seconds = checkpoint["ema"], checkpoint.get("seconds", 0.0)
        if len(places := checkpoint.get("places", [])) == self.trainer.world_size:
            self.places = places[self.global_rank]
        elif places and self.clips:  # of another number of processes: a new pass
            self.clips.go_to([1 + max(place[0] for part in places for place in part.values()), 0, 0, 0])

    def result(self, out: Path, model: Path) -> Path:
        """Where in the folder `out` the result goes. model: the YAML."""
        return out / f"{model.stem}.safetensors"

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write the result. config: the whole training config. What is frozen comes from `init` as it is there."""
        if config["init"] is None:
            return save_engine(self.engine, path)
        engine = build_engine(config["model"])
        load_weights(engine, config["init"], torch.device("cpu"), torch.float16)
        trained = {id(parameter) for parameter in self.trained()}
        for name, parameter in self.engine.named_parameters():
            if id(parameter) in trained:
                engine.get_parameter(name).copy_(parameter.detach())
        save_engine(engine, path)

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


def encoder_of(engine: DiffusionEngine) -> nn.Module:
    """The encoder of the network's latents."""
    if engine.first_stage_model.can_encode:
        return engine.first_stage_model.encoder
    return next(e.encoder.encoder for e in engine.conditioner.embedders if hasattr(e, "encoder"))


def save_engine(engine: DiffusionEngine, path: str | Path) -> None:
    """Write all weights in float16, as a .safetensors file."""
    state = engine.state_dict()
    layout = {key: (torch.float16, tuple(value.shape)) for key, value in state.items()}

    def read(key: str) -> Tensor:
        return state[key].detach().to("cpu", torch.float16).contiguous()

    with Tqdm(total=sum(2 * value.numel() for value in state.values()), **bytes_bar("the weights")) as bar:
        write_tensors(Path(path), layout, read, bar.update)
