"""A few steps of both training tasks on the CPU: they resume, and what they leave can be sampled from."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import signal
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from sgm import (
    UserError,
    VideoRequest,
    generate,
    load_engine,
    open_picture,
    read_frames,
    write_frames,
    write_video,
)
from sgm.cli.commands import cli
from sgm.config import instantiate_from_config, load_config
from sgm.engine import build_engine
from sgm.fast.unet import FastUNet
from sgm.loras import Lora, about_lora, loras_of
from sgm.merging import merged
from sgm.training.sharding import average
from sgm.versions import bundle
from sgm.weights import load_weights
from tests.beside import TINY, Beside
from tests.small_model import made_up
from tests.test_lora import evaluated
from tests.test_parity import error

pytest.importorskip("lightning", reason="training needs lightning: python -m pip install -e '.[train]'")

import lightning

from sgm.training import run
from sgm.training.autoencoder import Peaks, flicker
from sgm.training.checkpoints import WholeCheckpoints
from sgm.training.clips import FolderClips, open_clips
from sgm.training.data import PictureClips
from sgm.training.lora import LoraTask
from sgm.training.schema import read_training_config
from sgm.training.tasks import save_engine
from sgm.training.thrift import halve, recompute
from sgm.unet.unet import Block

GOLDENS = Path(__file__).parent / "data" / "goldens"
ADAM = "train.optimizer={target: torch.optim.Adam"
SAMPLES = bundle() / "app" / "samples"
TRAINING = bundle() / "configs" / "training"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    wave = np.sin(np.arange(64) / 5)[None, :, None] + np.cos(np.arange(64) / 7)[:, None, None]
    picture = np.broadcast_to((wave + 2) * 60, (64, 64, 3)).astype(np.uint8)
    write_video(folder / "moving.mp4", np.stack([np.roll(picture, 2 * i, axis=1) for i in range(6)]), 10)
    return [f"data.pictures={SAMPLES}", f"data.clips={folder}"]


def train(task: str, *overrides: str) -> Path:
    return run(TRAINING / f"svd_tiny_{task}.yaml", [*TINY, *overrides])


def steps_done(out: Path) -> int:
    return torch.load(out / "last.ckpt", weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def stages(beside: Beside) -> list[Path]:
    """The weights that two trainings leave, which one command made one after the other."""
    status, output = beside.done("trains_one_after_the_other")
    assert status == 0, output
    runs = beside.place("trains_one_after_the_other") / "runs"
    return [runs / f"svd_tiny_{stage}" / "svd_tiny.safetensors" for stage in ("autoencoder", "video")]


@pytest.fixture(scope="module")
def autoencoder(stages: list[Path]) -> Path:
    return stages[0]


@pytest.fixture(scope="module")
def video(stages: list[Path]) -> Path:
    return stages[1]


def test_the_autoencoder_resumes_where_it_stopped(data: list[str], autoencoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(autoencoder.parent, out)
    assert steps_done(out) == 2
    before = load_file(autoencoder)
    path = train("autoencoder", *data, f"out={out}", "train.steps=5")
    assert path == out / "svd_tiny.safetensors"
    assert steps_done(out) == 5
    after = load_file(path)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("first_stage_model.decoder.") for name in changed)
    assert any(".encoder.encoder." in name for name in changed)
    assert not list(out.glob("*.part"))


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_weights_to_start_from_are_looked_for_where_others_are(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGM_PROGRESS_EVERY", "what is looked at next")
    monkeypatch.delenv("SGM_CHECKPOINTS", raising=False)
    more = [f"data.folder={data[1].partition('=')[2]}", "init=checkpoints/made up.safetensors"]
    with pytest.raises(UserError, match=r"checkpoints.made up\.safetensors: set init=FILE, or null for none"):
        run(TRAINING / "svd_lora.yaml", more)
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path))
    (tmp_path / "made up.safetensors").touch()
    with pytest.raises(UserError, match="SGM_PROGRESS_EVERY"):
        run(TRAINING / "svd_lora.yaml", more)


@pytest.mark.parametrize("kind", ["code", "damaged", "another training's"])
def test_a_checkpoint_is_not_gone_on_with(kind: str, data: list[str], autoencoder: Path, tmp_path: Path) -> None:
    last, executed = tmp_path / "last.ckpt", tmp_path / "executed"
    saved = torch.load(autoencoder.parent / "last.ckpt", weights_only=True)
    if kind == "code":
        torch.save({**saved, "callbacks": Code(executed)}, last)
    elif kind == "damaged":
        last.write_bytes((autoencoder.parent / "last.ckpt").read_bytes()[:-5000])
    else:
        torch.save({**saved, "state_dict": {"w": torch.zeros(1)}}, last)
    before = last.read_bytes()
    said = "is another training's" if kind == "another training's" else r"last\.ckpt cannot be gone on with .* code"
    with pytest.raises(UserError, match=f"{said}.*Move it away"):
        train("autoencoder", *data, f"out={tmp_path}", "train.steps=3")
    assert not executed.exists()
    assert last.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.picturs=X", "data.picturs is no setting of a training config: did you mean data.pictures?"),
        ("train.lrr=1", "did you mean train.lr?"),
        ("zzzz=1", "zzzz is no setting of a training config: known are task, "),
        ("task=audio", "task must be one of autoencoder, video, lora; got 'audio'"),
        ("task=null", "task must be one of"),
        ("train=5", "train must be a mapping"),
        ("train.steps=many", "train.steps must be a whole number; got 'many'"),
        ("train.steps=2.5", "train.steps must be a whole number from 1"),
        ("train.batch=0", "train.batch must be a whole number from 1"),
        ("train.lr=nan", "train.lr must be a number from"),
        ("train.lr=null", "train.lr must be a number"),
        ("train.ema=1", "train.ema must be a number from 0"),
        ("train.fresh=1.5", "train.fresh must be a whole number or a share below 1; got 1.5"),
        ("train.compile=maybe", "train.compile must be one of true, false; got 'maybe'"),
        ("train.precision=64", "train.precision must be one of 32-true"),
        ("train.only=spatial", "train.only must be one of temporal, null"),
        ("train.loss_config=none", "train.loss_config must be a mapping"),
        ("data.canvas=[96]", "data.canvas must be a list of 2"),
        ("data.canvas=[16,16]", "data.canvas must be at least data.height"),
        ("data.height=100", "must be multiples of 8"),
        ("data.height=-64", "data.height must be a whole number from 8"),
        ("data.pictures=[1]", "There is no folder [1]"),
        ("data.pictures=2024", "There is no folder 2024: set data.pictures to a folder of your pictures"),
        ("data.pictures=", "must be a text; got ''"),
        ("train.minutes=null", "The training has no end"),
        ("init=none.safetensors", "There are no weights to start from at none.safetensors"),
        ("model=none.yaml", "There is no config of a model at none.yaml"),
        ("train.perceptual=none.npz", "There is no file none.npz"),
        ("sample.pictures=none.png", "There is no picture or folder none.png: set sample.pictures"),
        ("train.optimizer.target=torch.optim.AdamX", "not a known target. Near it: torch.optim.Adam"),
        ("train.optimizer={target: torch.nn.Identity}", "train.optimizer.target must be one of torch.optim.AdamW"),
        (f"{ADAM}, params: {{lr: 1}}}}", "train.optimizer.params has lr: set train.lr instead"),
        (f"{ADAM}, more: 1}}", "with target and params, itself a mapping; got the key more"),
        ("train.time_limit=0", "train.time_limit must be a number from"),
    ],
)
def test_a_wrong_setting_is_one_sentence(override: str, said: str, tmp_path: Path) -> None:
    places = [f"data.pictures={SAMPLES}", f"data.clips={SAMPLES}", f"out={tmp_path / 'out'}"]
    with pytest.raises(UserError) as caught:
        run(TRAINING / "svd_tiny_video.yaml", ["init=null", *places, override])
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_video_network_alone_is_trained_on_the_autoencoders_latents(autoencoder: Path, video: Path) -> None:
    assert steps_done(video.parent) == 2
    weights, start = load_file(video), load_file(autoencoder)
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert all(name.startswith(("model.diffusion_model.", "conditioner.embedders.0.")) for name in changed)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert weights["model.diffusion_model.out.2.weight"].abs().sum() > 0  # zero before the first step


def test_scenes_with_depth_are_learnt_but_for_what_nobody_has_seen(
    data: list[str], video: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for picture in SAMPLES.glob("*.jpg"):
        mask = np.zeros((60, 100), np.uint8)
        mask[15:45, 30:60] = 255
        Image.fromarray(mask).save(masks / f"{picture.stem}.png")
    overrides = (f"init={video}", f"data.masks={masks}", "data.motion_bucket=[200,255]")
    out = train("depth", *data, *overrides, f"out={tmp_path}", "train.fresh=3", "train.pool=3", "train.steps=1")
    before, after = load_file(video), load_file(out)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert all(value.isfinite().all() for value in after.values())


def test_the_loss_leaves_out_what_is_not_known() -> None:
    loss = instantiate_from_config(load_config(TRAINING / "svd_tiny_depth.yaml")["train"]["loss_config"])
    known = torch.ones(2, 1, 4, 4)
    known[..., 2:] = 0

    def wrong(network: object, noised: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        return torch.where(known > 0, 0.0, 9.0).expand_as(noised)

    x = torch.zeros(2, 3, 4, 4)
    assert loss(None, wrong, {}, x, num_video_frames=2, known=known) == 0
    assert loss(None, wrong, {}, x, num_video_frames=2) > 1


def test_what_training_leaves_can_be_sampled_from(video: Path) -> None:
    engine = load_engine("svd_tiny", checkpoint=video, device="cpu")
    request = VideoRequest(frames=3, steps=2, height=64, width=64)
    clip = generate(engine, request, open_picture(SAMPLES / "kitten.jpg"))
    assert clip.frames.shape == (3, 64, 64, 3)
    assert clip.frames.std() > 0


def test_the_decoder_alone_is_trained_against_flicker(data: list[str], video: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "clips.tar", "w") as shard:
        shard.add(data[1].partition("=")[2], "clips")
    more = ["train.steps=1", "train.peak_weight=0.1", "data.recoloured=0.5"]
    path = train("decoder", *data, f"data.clips={tmp_path / 'clips.tar'}", f"out={tmp_path}", f"init={video}", *more)
    weights, start = load_file(path), load_file(video)
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed
    assert all(name.startswith("first_stage_model.decoder.") for name in changed)


def test_one_command_trains_one_after_the_other(stages: list[Path]) -> None:
    first, last = map(load_file, stages)
    decoder = [name for name in first if name.startswith("first_stage_model.decoder.")]
    assert decoder
    assert all(torch.equal(first[name], last[name]) for name in decoder)  # the second started from the first's


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config of Stable Video Diffusion's kind, small, and made-up weights for it."""
    config = GOLDENS / "svd_small.yaml"
    path = tmp_path_factory.mktemp("official") / "svd_small.safetensors"
    save_engine(made_up(config), str(path))
    return config, path


@torch.no_grad()
def loss_of(config: Path, weights: Path, folder: str, loras: Sequence[Lora] = ()) -> float:
    """The training loss on clips, sigmas and noise that are the same at each call."""
    engine = build_engine(config)
    load_weights(engine, weights, torch.device("cpu"), torch.float32)
    torch.manual_seed(7)
    clips = open_clips(folder, (64, 64)).draw(8, 3, torch.device("cpu"))
    first = clips.video[:, 0]
    batch = {"cond_frames": first, "cond_frames_without_noise": first, "cond_aug": torch.full((8,), 0.02)}
    if "camera" in engine.conditioner.input_keys:
        batch |= {"cond_frames": clips.warped.flatten(0, 1), "camera": clips.rays.flatten(0, 1)}
    cond = engine.conditioner({**batch, "fps_id": clips.fps_id, "motion_bucket_id": clips.motion_bucket_id})
    cond = {key: value.repeat_interleave(24 // len(value), dim=0) for key, value in cond.items()}
    z = engine.encode(clips.video.flatten(0, 1))
    loss = instantiate_from_config(load_config(TRAINING / "svd_finetune.yaml")["train"]["loss_config"])
    network = merged(FastUNet(engine.model), loras, "this model").model
    return float(loss(network, engine.denoiser, cond, z, num_video_frames=3))


def test_an_official_model_is_fine_tuned_on_a_folder_of_clips(
    data: list[str], official: tuple[Path, Path], tmp_path: Path
) -> None:
    config, start = official
    path = run(
        TRAINING / "svd_finetune.yaml",
        [
            *(f"model={config}", f"init={start}", f"out={tmp_path}", f"data.folder={data[1].partition('=')[2]}"),
            *("data.frames=3", "data.height=64", "data.width=64", "train.steps=6", "train.pool=4", "train.batch=2"),
            *("train.devices=1", "train.precision=32-true", "train.warmup=2", "train.lr=1.2e-2"),
        ],
    )
    before, after = load_file(start), load_file(path)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(any(f".{part}." in name for part in ("time_stack", "time_mixer", "time_pos_embed")) for name in changed)
    folder = data[1].partition("=")[2]
    assert loss_of(config, path, folder) < 0.9 * loss_of(config, start, folder)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not saved["ema"]
    assert len(saved["state_dict"]) < len(after) / 2  # what is frozen is not saved again


@pytest.fixture(scope="module")
def lora(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A LoRA of svd_tiny, trained on a clip, and how."""
    out = tmp_path_factory.mktemp("runs") / "rolling"
    how = [
        *(f"model={bundle() / 'configs' / 'inference' / 'svd_tiny.yaml'}", f"data.folder={data[1].partition('=')[2]}"),
        *(f"init={bundle() / 'checkpoints' / 'svd_tiny.safetensors'}", "rank=4", "alpha=8", "trigger=rolling waves"),
        *("data.frames=3", "data.height=64", "data.width=64", "train.pool=2", "train.batch=1", "train.devices=1"),
        *("train.precision=32-true", "train.lr=5e-3", "targets=[attention,convolutions]", "train.warmup=2"),
        *("train.checkpointing=false", "train.fresh=1"),
    ]
    return run(TRAINING / "svd_lora.yaml", [*how, f"out={out}", "train.steps=10"]), how


def test_a_lora_is_trained_on_a_folder_of_clips_and_loads_as_one(data: list[str], lora: tuple[Path, list[str]]) -> None:
    path, how = lora
    config, init = (Path(text.partition("=")[2]) for text in (how[0], how[2]))
    assert path.name == "rolling.safetensors"
    assert path.stat().st_size < 0.3 * init.stat().st_size
    about = about_lora(path)
    assert (about.title, about.note) == ("rolling", "trained on svd_tiny · 10 steps · for rolling waves")
    folder = data[1].partition("=")[2]
    assert loss_of(config, init, folder, [Lora("x", 1, path, "")]) < 0.9 * loss_of(config, init, folder)


def test_a_lora_of_strength_1_is_the_trained_network_and_of_strength_0_the_base(
    lora: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, how = lora
    config = read_training_config(TRAINING / "svd_lora.yaml", [*how, f"out={tmp_path / 'made-up'}"])
    base, trained = (load_engine("svd_tiny", device="cpu", dtype="float32") for _ in range(2))
    task = LoraTask(trained, config["data"], config["train"])
    assert torch.equal(
        evaluated(trained.network, fast=False), evaluated(base.network, fast=False)
    )  # adapters begin at 0
    for parameter in task.trained():  # as the file holds them
        parameter.data = (0.2 * torch.randn_like(parameter)).half().float()
    path = task.result(tmp_path, config["model"])
    task.save(path, config)
    alone, whole = (merged(base.network, loras_of(f"x:{strength}", {"x": path}), "svd_tiny") for strength in (0, 1))
    want = evaluated(trained.eval().network, fast=False)
    assert error(evaluated(whole), want) < 1e-4
    assert error(evaluated(base.network), want) > 1e-2
    assert alone is base.network


def test_what_saves_memory_changes_no_gradient(lora: tuple[Path, list[str]], tmp_path: Path) -> None:
    config = read_training_config(TRAINING / "svd_lora.yaml", [*lora[1], f"out={tmp_path}", "train.steps=1"])
    engine = instantiate_from_config(load_config(config["model"])["model"])
    load_weights(engine, config["init"], torch.device("cpu"), torch.float32)
    task = LoraTask(engine, config["data"], config["train"])
    task.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    task.setup("fit")
    task.trainer = None  # which would want to log
    for parameter in task.trained():
        parameter.data = 0.05 * torch.randn_like(parameter)

    def step() -> list[torch.Tensor]:
        task.pool.clear()
        task.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.training_step(0, 0)
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in task.trained() if parameter.grad is not None)]

    want, network = step(), engine.model.diffusion_model
    assert len(want) == len(task.trained()) + 1
    halve(engine, "bf16-mixed")
    assert network.input_blocks[0][0].weight.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in task.trained()} == {torch.float32}
    recompute(network, 0.4)
    assert {block.use_checkpoint for block in network.modules() if isinstance(block, Block)} == {True, False}
    config["train"]["fresh"] = 0  # the pool is filled once
    assert all(torch.equal(one, other) for one, other in zip(step(), want, strict=True))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rank=0", "rank must be a whole number from 1 to 1024; got 0"),
        ("targets=everything", "targets must be one or several of temporal_attention, attention"),
        ("init=null", "A LoRA changes weights that are there: set init"),
        ("init=none.safetensors", "There are no weights to start from at none.safetensors"),
        ("data.folder=none", "There is no folder none: set data.clips to a folder of your clips"),
        ("data.folder=empty", "empty holds no clips that can be read: name the folder that holds them"),
        ("sample.pictures=empty", "empty holds no pictures that can be read"),
        (f"{ADAM}, params: {{beta: 1}}}}", "has 'beta', which torch.optim.Adam does not take; it takes lr, betas"),
        (f"{ADAM}, params: {{betas: [2, 2]}}}}", "torch.optim.Adam cannot be made of these params: Invalid beta"),
        ("train.schedule={target: torch.optim.lr_scheduler.StepLR}", "missing 1 required positional argument"),
    ],
)
def test_a_wrong_setting_of_a_lora_is_one_sentence(
    lora: tuple[Path, list[str]], override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError) as caught:
        run(TRAINING / "svd_lora.yaml", [*lora[1], f"out={tmp_path / 'out'}", "train.steps=1", override])
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_where_memory_runs_out_it_is_the_training_s_settings_that_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    def fit(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(lightning.Trainer, "fit", fit)
    with pytest.raises(UserError, match=r"more memory than there is.* set train.batch, data.frames, data.width or"):
        train("video", "data.clips=null", f"data.pictures={SAMPLES}", "init=null", f"out={tmp_path / 'out'}")


def test_several_processes_average_their_gradients() -> None:
    store: Any = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    values = torch.arange(2.0**22).view(2, 2**17, 4, 4)

    def averaged(rank: int) -> list[torch.Tensor]:
        group: Any = torch.distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        own = values * (rank + 1)
        gradients = [own, own.to(memory_format=torch.channels_last), torch.full((3,), float(rank))]
        average(gradients, group)
        return gradients

    with ThreadPoolExecutor(2) as pool:  # processes, as far as the library knows
        found = list(pool.map(averaged, range(2)))
    wanted = [1.5 * values, 1.5 * values, torch.full((3,), 0.5)]
    assert all(torch.equal(got, want) for got, want in zip([*found[0], *found[1]], wanted * 2, strict=True))


def test_a_loss_that_is_no_number_ends_the_training_and_the_last_checkpoint_stays(
    lora: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, how = lora
    shutil.copytree(path.parent, tmp_path / "rolling")
    kept = (tmp_path / "rolling" / "last.ckpt").read_bytes()
    resume = [*how, f"out={tmp_path / 'rolling'}", "train.steps=30"]
    with pytest.raises(
        UserError, match=r"The loss of step 1\d is nan, at sigma \d.*last.ckpt is from before, and stays"
    ):
        run(TRAINING / "svd_lora.yaml", [*resume, "train.lr=10", "alpha=1e6"])
    assert (tmp_path / "rolling" / "last.ckpt").read_bytes() == kept


def test_a_run_that_is_stopped_and_goes_on_makes_the_steps_of_an_unbroken_one(
    lora: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped by SIGTERM among the batches of a step, and with samples, which the other makes none of."""
    how = [*lora[1], "targets=temporal_attention"]
    whole, broken, step = tmp_path / "whole", tmp_path / "broken", LoraTask.training_step
    losses: list[float] = []
    stop_at = 0

    def watched(task: LoraTask, batch: object, batch_idx: int) -> torch.Tensor:
        loss = step(task, batch, batch_idx)
        losses.append(float(loss.detach()))
        if len(losses) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return loss

    monkeypatch.setattr(LoraTask, "training_step", watched)
    monkeypatch.setattr("sgm.training.tasks._LOG_EVERY", 2)
    more = ["train.steps=3", "train.accumulate=2", "train.ema=0.9", "dropout=0.2", "train.batch=2"]
    more += ["train.schedule.target=torch.optim.lr_scheduler.CosineAnnealingLR", "train.schedule.params={T_max: 4}"]
    run(TRAINING / "svd_lora.yaml", [*how, *more, f"out={whole}"])
    unbroken, stop_at = losses.copy(), 3
    losses.clear()
    more += [f"sample.pictures={SAMPLES / 'kitten.jpg'}", "sample.steps=1"]
    before = signal.getsignal(signal.SIGTERM)
    for limit, why in (("9", "SIGTERM"), ("0.001", "its time limit")):
        command = ["train", str(TRAINING / "svd_lora.yaml"), *how, *more, f"out={broken}", "--time-limit", limit]
        stopped = CliRunner().invoke(cli, command)
        assert stopped.exit_code == 75, stopped.output
        assert f"The training was ended at step 2 ({why}); the same command goes on from" in stopped.stderr
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps_done(broken) == 2  # four batches, of which two make a step
    sharded = tmp_path / "sharded"
    shutil.copytree(broken, sharded)
    run(TRAINING / "svd_lora.yaml", [*how, *more, f"out={broken}"])
    assert losses == unbroken
    assert len(losses) == 6
    one, other = (torch.load(out / "last.ckpt", weights_only=True) for out in (whole, broken))
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(other[part], one[part], rtol=0, atol=0)

    # With weights and states divided (here over a single process), from a checkpoint of a training without.
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)  # Lightning's, undone afterwards
    run(TRAINING / "svd_lora.yaml", [*how, *more, f"out={sharded}", "sample.pictures=null", "train.strategy=fsdp"])
    torch.distributed.destroy_process_group()
    divided = torch.load(sharded / "last.ckpt", weights_only=True)
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(divided[part], one[part])
    undivided = load_file(whole / "whole.safetensors")
    for name, value in load_file(sharded / "sharded.safetensors").items():
        torch.testing.assert_close(value, undivided[name])

    log = broken / "log"
    with (log / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert list(rows) == [0, 1, 2, 3]  # each once, those before the stop among them
    assert float(rows[3]["clips_per_second"]) > 0
    assert any(float(rows[3][name] or 0) > 0 for name in rows[3] if name.startswith("loss_to_sigma_"))
    assert all(float(rows[step]["sample_hold"]) > 0 for step in (0, 2, 3))
    sampled = ["0000000", "0000002", "0000003"]
    assert sorted(path.name for path in (log / "samples").iterdir()) == sorted(
        [f"{step}{end}" for step in sampled for end in (".png", "-kitten.mp4")]
    )
    assert "Step 3: 1 sampled in" in capsys.readouterr().out
    assert list(log.glob("events.out.tfevents.*"))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_from_the_checkpoint_of_a_signal_a_run_on_shards_goes_on_with_the_same_clips(
    lora: tuple[Path, list[str]], data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Path(data[1].partition("=")[2], "moving.mp4")
    for number in range(2):
        write_video(tmp_path / "other.mp4", read_frames(clip)[0][::-1] // (2 + number), 10 + number)
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            archive.add(clip, f"{number}a.mp4")
            archive.add(tmp_path / "other.mp4", f"{number}b.mp4")
    one, other, step = tmp_path / "one", tmp_path / "other", LoraTask.training_step
    losses: list[float] = []

    def watched(task: LoraTask, batch: object, batch_idx: int) -> torch.Tensor:
        losses.append(float((loss := step(task, batch, batch_idx)).detach()))
        if len(losses) == 3:
            signal.raise_signal(signal.SIGUSR1)
        if len(losses) == 4:  # the checkpoint is from before this step
            shutil.copytree(one, other)
        return loss

    monkeypatch.setattr(LoraTask, "training_step", watched)
    (tmp_path / "shards.txt").write_text("0.tar\n1.tar\n")
    how = [*lora[1], f"data.folder={tmp_path / 'shards.txt'}", "train.pool=3", "train.fresh=0.5", "train.steps=6"]
    run(TRAINING / "svd_lora.yaml", [*how, f"out={one}"])
    assert steps_done(other) == 3
    run(TRAINING / "svd_lora.yaml", [*how, f"out={other}"])
    assert losses[6:] == losses[3:6]
    want, got = (torch.load(out / "last.ckpt", weights_only=True) for out in (one, other))
    assert got["places"] == want["places"]
    torch.testing.assert_close(got["state_dict"], want["state_dict"], rtol=0, atol=0)


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    files, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    files.save_checkpoint({"good": torch.ones(4)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last.ckpt cannot be written \(.*make room or choose another place"):
            files.save_checkpoint({"large": torch.ones(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(torch.load(path, weights_only=True)["good"], torch.ones(4))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_interrupt_while_a_checkpoint_is_written_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def press(*_: object) -> None:
        if next(calls) == 3:  # amid a part of the file, which torch's own writer then complains of
            raise KeyboardInterrupt

    monkeypatch.setattr("sgm.training.checkpoints.Tqdm.update", press)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({"large": torch.ones(1 << 20)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_flicker_is_what_does_not_move_with_the_camera() -> None:
    torch.manual_seed(0)
    clips = PictureClips(SAMPLES, (96, 160), (192, 320)).draw(3, 4, torch.device("cpu"), warped=False)
    steady = flicker(clips.video, clips.rays)
    assert flicker(clips.video + 0.05 * torch.randn_like(clips.video), clips.rays) > steady + 0.05
    assert flicker(clips.video, clips.rays[:, :1].expand_as(clips.rays)) > 3 * steady  # the motion left in
    unknown = torch.full_like(clips.rays, float("nan"))
    assert flicker(clips.video, unknown) == 0


def test_a_pixel_at_which_activations_are_far_larger_is_a_peak() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Sequential(torch.nn.GroupNorm(4, 8)), torch.randn(2, 8, 30, 30)
    peaks = Peaks(layer)
    layer(x)
    assert peaks.penalty() == 0
    x[1, :, 4, 5] *= 30
    x.requires_grad_()
    layer(x)
    penalty = peaks.penalty()
    assert 1 < penalty < 2  # half of the logarithm of some 450 over 20
    (gradient,) = torch.autograd.grad(penalty, x)
    assert gradient[0].abs().max() == 0
    assert (gradient[1] * x[1]).sum(dim=0)[4, 5] > 0  # smaller is better there, larger elsewhere
    assert not peaks.values


def test_clips_that_are_too_short_are_said(data: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No clip has 9 frames, the longest 6"):
        train("video", data[1], "data.pictures=null", "data.frames=9", f"out={tmp_path}", "init=null", "train.steps=1")


def test_what_is_no_clip_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"holds no clips.*broken\.mp4 cannot be read as a video"):
        open_clips(tmp_path, (64, 64))
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    (tmp_path / "inside").mkdir()
    write_frames(tmp_path / "inside" / "Lossless.MKV", frames, 5)
    write_video(tmp_path / "short.mp4", frames[:1], 5)
    whole = write_video(tmp_path / "no ending.mp4", frames, 5).rename(tmp_path / "no ending")
    for name in ("._moving.mp4", ".DS_Store", "Thumbs.db", "inside/._Lossless.MKV"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:1200])  # the index, and nothing behind it
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    (tmp_path / "notes").write_text("of the day")
    clips = open_clips(tmp_path, (64, 64))
    assert isinstance(clips, FolderClips)
    assert sorted(path.name for path in clips.clips) == ["Lossless.MKV", "no ending", "short.mp4"]
    assert clips.draw(3, 4, torch.device("cpu")).video.shape == (3, 4, 3, 64, 64)
    assert clips.draw(3, 4, torch.device("cpu")).fps_id.tolist() == [4] * 3
    sorted_out, unreadable, short = (record.getMessage() for record in caplog.records)  # each said once
    assert sorted_out == f"Left out of {tmp_path}: notes (no clip), still.png (a PNG picture)."
    assert all(f"{name}.mp4 cannot be read as a video" in unreadable for name in ("broken", "cut"))
    assert short == f"Left out, since they have fewer than 4 frames: short.mp4 (1). More: sgm data {tmp_path}"


def test_a_picture_that_is_damaged_is_left_out_of_training_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (64, 64), (9, 99, 199)).save(tmp_path / "good.JFIF", "JPEG")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "good.JFIF").read_bytes()[:400])
    assert len(PictureClips(tmp_path, (64, 64), (96, 96)).colour) == 1
    assert re.search(r"Left out.*half\.jpg is a JPEG picture, but damaged", caplog.text)
    (tmp_path / "good.JFIF").unlink()
    with pytest.raises(UserError, match=r"holds no pictures.*half\.jpg"):
        PictureClips(tmp_path, (64, 64), (96, 96))


def test_clips_are_cropped_in_the_middle_and_keep_their_colours(tmp_path: Path) -> None:
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :, :16], frames[:, :, 16:80], frames[:, :, 80:] = (255, 0, 0), (20, 190, 60), (0, 0, 255)
    frames[1] ^= 3  # else it stands still, and is left out
    write_video(tmp_path / "clip.mp4", frames, 12.5)
    clips = open_clips(tmp_path, (32, 32))
    batch = clips.draw(2, 3, torch.device("cpu"))
    assert isinstance(clips, FolderClips)
    assert [facts.rate for facts in clips.clips.values()] == [12.5]
    assert batch.fps_id.tolist() == [11.5, 11.5]
    colours = (batch.video.mean(dim=(0, 1, 3, 4)) + 1) * 127.5
    assert torch.allclose(colours, torch.tensor([20.0, 190.0, 60.0]), atol=4)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none holds no pictures that can be read: name the folder"):
        train(
            "autoencoder", f"data.pictures={tmp_path / 'none'}", "data.clips=null", f"out={tmp_path}", "train.steps=1"
        )
