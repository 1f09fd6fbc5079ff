"""LoRAs: those of peft, kohya and ours, merged into networks, and the engine untouched."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from sgm import (
    UserError,
    VideoRequest,
    convert_weights,
    differences,
    generate,
    hash_of_frames,
    load_engine,
    open_picture,
    read_recipe,
    request_of,
)
from sgm.cli.commands import cli
from sgm.conditioning.scalar import ConcatTimestepEmbedderND
from sgm.engine import DiffusionEngine, copy_to
from sgm.fast.unet import FastUNet
from sgm.formats.diffusers import UNET, unet_counterparts
from sgm.loras import Lora, about_lora, loras_of
from sgm.merging import added_bytes, merged
from sgm.unet.video_unet import VideoUNet
from tests.small_model import made_up, state_of, write_config

FRAMES = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("lora") / "small.yaml")


@pytest.fixture(scope="module")
def engine(config: Path) -> DiffusionEngine:
    return made_up(config)


def evaluated(network: FastUNet, fast: bool = True) -> Tensor:
    """A network's output for two clips of made-up inputs."""
    dtype = next(network.model.parameters()).dtype
    x, context, ids = (value.to(dtype) for value in inputs(network))
    c = {
        "crossattn": context.repeat_interleave(FRAMES, 0),
        "vector": ConcatTimestepEmbedderND(256)(ids).repeat_interleave(FRAMES, 0),
    }
    with torch.inference_mode():
        return (network if fast else network.model)(
            x.flatten(0, 1), torch.full((2 * FRAMES,), 1.6).to(x), c, num_video_frames=FRAMES
        )


def inputs(network: FastUNet) -> tuple[Tensor, Tensor, Tensor]:
    unet, generator = network.model.diffusion_model, torch.Generator().manual_seed(1)
    assert isinstance(unet, VideoUNet)
    assert unet.context_dim
    x = torch.randn(2, FRAMES, unet.in_channels, 16, 24, generator=generator)
    context = torch.randn(2, 1, unet.context_dim, generator=generator)
    return x, context, torch.tensor([[6.0, 127.0, 0.02], [23.0, 20.0, 0.3]])


def found(path: Path, strength: float = 1.0) -> list[Lora]:
    return [Lora("style", strength, path, "")]


LAYERS = ["input_blocks.1.1.time_stack.0.attn1.to_q", "middle_block.1.transformer_blocks.0.attn1.to_out.0"]
LAYERS += ["input_blocks.1.0.in_layers.2", "output_blocks.0.0.time_stack.out_layers.3"]


def write_lora(path: Path, engine: DiffusionEngine, naming: str = "ours", layers: list[str] = LAYERS) -> Path:
    """Made-up matrices of rank 2 with alpha 3, for some layers of an engine's network, under a program's names."""
    state = {name.removeprefix(UNET): value for name, value in engine.state_dict().items() if name.startswith(UNET)}
    counterparts = unet_counterparts(state)
    generator, tensors = torch.Generator().manual_seed(5), {}
    for layer in layers:
        weight, theirs = state[f"{layer}.weight"], counterparts[f"{layer}.weight"].names[0].removesuffix(".weight")
        down = torch.randn(2, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=generator)
        name, parts = {
            "ours": (f"diffusion_model.{layer}", (".lora_down", ".lora_up")),
            "kohya": (f"lora_unet_{theirs.replace('.', '_')}", (".lora_down", ".lora_up")),
            "kohya, official names": (f"lora_unet_{layer.replace('.', '_')}", (".lora_down", ".lora_up")),
            "diffusers": (f"unet.{theirs}", (".lora.down", ".lora.up")),
            "processors": (
                theirs.replace(".to_", ".processor.to_").replace("to_out.0", "to_out"),
                ("_lora.down", "_lora.up"),
            ),
            "peft": (f"base_model.model.{theirs}", (".lora_A.default", ".lora_B.default")),
        }[naming]
        tensors |= {
            f"{name}{parts[0]}.weight": down,
            f"{name}{parts[1]}.weight": up,
            f"{name}.alpha": torch.tensor(3.0),
        }
    metadata = {"modelspec.title": "Slow pans", "sgm.base": "svd_small", "sgm.steps": "200", "lying": "x" * 5000}
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("naming", ["kohya", "kohya, official names", "diffusers", "processors", "peft"])
def test_every_programs_names_lead_to_the_same_layers(naming: str, engine: DiffusionEngine, tmp_path: Path) -> None:
    layers = LAYERS[:2] if naming == "processors" else LAYERS
    ours, other = (write_lora(tmp_path / name, engine, name, layers) for name in ("ours", naming))
    of_ours, of_other = (state(merged(engine.network, found(path), "svd")) for path in (ours, other))
    base = state(engine.network)
    changed = {name for name, value in of_ours.items() if not torch.equal(value, base[name])}
    assert changed == {f"diffusion_model.{layer}.weight" for layer in layers}
    assert all(torch.equal(value, of_other[name]) for name, value in of_ours.items())


def state(network: FastUNet) -> Mapping[str, Tensor]:
    return network.model.state_dict()


def test_a_network_with_loras_shares_what_they_do_not_touch_and_leaves_the_engines_as_it_was(
    engine: DiffusionEngine, tmp_path: Path
) -> None:
    base, before = engine.network, {name: value.clone() for name, value in state(engine.network).items()}
    path = write_lora(tmp_path / "one", engine)
    one, two = (merged(base, found(path, strength), "svd") for strength in (1.0, -2.0))
    # The kernels, and q, k and v, which lie in one storage.
    assert 0 < added_bytes(one, base) < 0.2 * sum(value.nbytes for value in before.values())
    name = f"diffusion_model.{LAYERS[2]}.weight"
    assert torch.allclose(state(two)[name] - before[name], -2 * (state(one)[name] - before[name]), atol=1e-6)
    both = merged(base, [*found(path), Lora("again", -2.0, path, "")], "svd")
    assert torch.allclose(state(both)[name] - before[name], before[name] - state(one)[name], atol=1e-6)
    assert merged(base, found(path), "svd") is merged(base, found(path), "svd")
    assert merged(base, loras_of("one:0", {"one": path}), "svd") is base
    assert all(torch.equal(value, before[name]) for name, value in state(engine.network).items())


def test_half_precision_is_merged_in_float32_and_rounded_once(engine: DiffusionEngine, tmp_path: Path) -> None:
    half = FastUNet(copy_to(engine.network.model, torch.device("cpu"), torch.bfloat16))
    exact = FastUNet(copy_to(half.model, torch.device("cpu"), torch.float32))
    path = write_lora(tmp_path / "one", engine)
    want, got = (state(merged(network, found(path, 0.3), "svd")) for network in (exact, half))
    assert all(torch.equal(value, want[name].bfloat16()) for name, value in got.items())
    large = write_lora(tmp_path / "large", engine)
    save_file({name: 1e4 * value for name, value in load_file(large).items()}, large)
    narrow = FastUNet(copy_to(half.model, torch.device("cpu"), torch.float16))
    with pytest.raises(UserError, match=r"style \(4\).*exceeds what float16 can hold: lower a strength"):
        merged(narrow, found(large, 4), "svd")


def test_what_has_no_place_is_listed_and_another_networks_lora_told_apart(
    engine: DiffusionEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(write_lora(tmp_path / "ours", engine))
    stray = {"diffusion_model.input_blocks.99.0.lora_up.weight": torch.zeros(8, 2)}

    def refusal(extra: dict[str, Tensor], alone: bool = False, metadata: dict[str, str] | None = None) -> str:
        save_file(extra if alone else tensors | extra, tmp_path / "other", metadata)
        with pytest.raises(UserError) as caught:
            merged(engine.network, found(tmp_path / "other"), "svd")
        return str(caught.value)

    save_file(tensors | stray, tmp_path / "partial.safetensors")
    assert state(merged(engine.network, found(tmp_path / "partial.safetensors"), "svd"))
    assert (
        "partial.safetensors: 4 layers of svd take it; it has no place for diffusion_model.input_blocks.99"
        in caplog.text
    )
    down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{}_to_k.lora_down.weight"
    assert "a LoRA of Stable Diffusion 1.x, which does not fit svd" in refusal({down.format(2): torch.zeros(2, 768)})
    assert "a LoRA of Stable Diffusion XL" in refusal({}, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert "told what to draw by text" in refusal({"lora_te_text_model_x.lora_up.weight": torch.zeros(2, 2)})
    assert "AnimateDiff" in refusal({"down.motion_modules.0.to_q.lora_up.weight": torch.zeros(2, 2)})
    assert "fits no layer of svd" in refusal(
        {down.format(1): torch.zeros(2, 9), down.format(1).replace("down.w", "up.w"): torch.zeros(9, 2)}, alone=True
    )
    assert "is no LoRA: it holds a.weight" in refusal({"a.weight": torch.zeros(2)}, alone=True)
    assert "LoHa, LoKr, DoRA or OFT" in refusal({"a.hada_w1_a": torch.zeros(2)}, alone=True)
    alphas = {name.replace("lora_up.weight", "alpha"): torch.tensor(1j) for name in tensors if "lora_up" in name}
    assert "fits no layer of svd" in refusal(alphas)
    spoilt = {name: value * torch.nan for name, value in tensors.items()}
    assert "NaN or infinity" in refusal(spoilt)
    (tmp_path / "cut").write_bytes((tmp_path / "ours").read_bytes()[:-9])
    with pytest.raises(UserError, match="cut is cut short"):
        merged(engine.network, found(tmp_path / "cut"), "svd")


def test_a_merged_checkpoint_computes_the_same(config: Path, engine: DiffusionEngine, tmp_path: Path) -> None:
    save_file(state_of(engine), tmp_path / "whole.safetensors")
    path = write_lora(tmp_path / "one", engine)
    loras = loras_of("one:0.7", {"one": path})
    out = convert_weights(tmp_path / "whole.safetensors", tmp_path / "merged.safetensors", config=config, loras=loras)
    written, want = load_file(out), state(merged(engine.network, loras, "svd"))
    assert all(torch.equal(value, written[f"model.{name}"]) for name, value in want.items())
    assert not torch.equal(written[f"{UNET}{LAYERS[0]}.weight"], engine.state_dict()[f"{UNET}{LAYERS[0]}.weight"])


TINY_LAYER = "middle_block.1.time_stack.0.attn1.to_v"


def test_a_clip_with_loras_has_them_in_its_recipe_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sgm(*words: object):
        return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path / "checkpoints"))
    (tmp_path / "loras").mkdir()
    tiny = load_engine(device="cpu", dtype="float32")
    style = write_lora(tmp_path / "loras" / "style.safetensors", tiny, layers=[TINY_LAYER])
    film = write_lora(tmp_path / "film.safetensors", tiny, layers=[TINY_LAYER.replace("to_v", "to_q")])
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)).save("photo.png")
    small = ("--frames", 2, "--steps", 1, "--height", 64, "--width", 96, "--dtype", "float32")
    made = sgm("sample", "photo.png", *small, "--lora", "style:0.5", "--lora", f"{film}:2", "--out", "clip.mp4")
    assert made.exit_code == 0, made.output
    settings = read_recipe("clip.mp4")
    assert settings["lora"] == "style:0.5 + film:2"
    names = [(lora["name"], lora["strength"], len(lora["sha256"])) for lora in settings["sgm"]["loras"]]
    assert names == [("style", 0.5, 64), ("film", 2.0, 64)]

    # A shell of any system takes the command apart into these words.
    command = sgm("recipe", "clip.mp4", "--as", "command").stdout.split()
    assert command[command.index("--lora") :][:4] == ["--lora", "style:0.5", "--lora", "film:2"]

    # The same engine makes clips with and without, on several threads, and those without are as ever.
    picture, request = open_picture("photo.png"), request_of(settings)
    engine = load_engine(device="cpu", dtype="float32", loras={"film": film})
    asked = [request.replace(lora=""), request, request, request.replace(lora="")]
    with ThreadPoolExecutor(4) as pool:
        plain, again, *rest = pool.map(lambda one: hash_of_frames(generate(engine, one, picture).frames), asked)
    assert rest == [again, plain]
    assert again == settings["sgm"]["frames"] != plain
    assert plain == hash_of_frames(generate(tiny, request.replace(lora="style:0"), picture).frames)

    assert sgm("repeat", "clip.mp4", "--picture", "photo.png", "--lora", film).stdout == "identical\n"
    lacking = sgm("repeat", "clip.mp4", "--picture", "photo.png")
    assert (lacking.exit_code, "There is no LoRA film in" in lacking.stderr) == (2, True)
    assert "there is style" in lacking.stderr
    others = [{**lora, "sha256": "0" * 64} for lora in settings["sgm"]["loras"][:1]]
    (said,) = differences(settings, {**settings, "sgm": {**settings["sgm"], "loras": others}})
    assert said.startswith("LoRA: style (")

    # A sweep that finds the clip says that a LoRA has another content since, as after another training.
    Path("out/clips").mkdir(parents=True)
    shutil.copy("clip.mp4", "out/clips/photo_seed=23.mp4")
    sweep = "sweep", "photo.png", *small, "--lora", "style:0.5", "--lora", f"{film}:2", "--vary", "seed=23"
    planned = sgm(*sweep, "--out", "out", "--dry-run").stdout
    assert ("1 clip, all there already." in planned, "LoRA" in planned) == (True, False)
    about = about_lora(style)
    shutil.copy(film, style)
    assert "LoRA: style (" in sgm(*sweep, "--out", "out", "--dry-run").stdout
    assert (about.title, about.note, about.problem) == ("Slow pans", "trained on svd_small · 200 steps", "")


@pytest.mark.parametrize("text", ["a/b", "C:b:1", "x:9", "x:nan", "..", "x + x:2", "\\x", 5])
def test_a_wrong_name_or_strength_is_one_sentence(text: object) -> None:
    with pytest.raises(UserError, match=r"^lora must be "):
        VideoRequest(lora=text)
