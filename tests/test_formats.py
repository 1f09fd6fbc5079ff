"""Every format is known by its content and loads strictly; what is wrong is said, and no code in a file runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgm import VideoRequest, generate
from sgm.convert import convert_weights
from sgm.engine import build_engine
from sgm.errors import UserError
from sgm.formats.diffusers import UNET, unet_counterparts
from sgm.installed import recognise, version_status
from sgm.versions import VERSIONS
from sgm.weights import WeightsError, load_weights, open_weights
from tests.small_model import made_up, official_layout, shapes_of, state_of, write_config, write_empty

CPU = torch.device("cpu")
CASES = ["svd_small", "svd_image_decoder_small"]


class Model:
    """A small model on disk: its YAML, its weights as one file and as a diffusers folder."""

    def __init__(self, folder: Path, case: str) -> None:
        self.config = write_config(folder / f"{case}.yaml", case)
        self.state = state_of(made_up(self.config))
        self.file, self.folder = folder / f"{case}.safetensors", folder / case
        save_file(self.state, self.file)
        convert_weights(self.file, self.folder, "diffusers", config=self.config)

    def load(self, path: Path, base: Path | None = None) -> dict[str, Tensor]:
        engine = build_engine(self.config)
        load_weights(engine, path, CPU, torch.float32, base=base)
        return engine.state_dict()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {case: Model(folder, case) for case in CASES}


@pytest.fixture
def model(models: dict[str, Model]) -> Model:
    return models["svd_small"]


def same(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("case", CASES)
def test_to_diffusers_and_back_is_bit_identical(models: dict[str, Model], case: str, tmp_path: Path) -> None:
    model = models[case]
    back = convert_weights(model.folder, tmp_path / "back.safetensors", config=model.config)
    assert same(load_file(back), model.state)
    assert same(model.load(model.folder), model.state)


def test_ckpt_files_load_as_lightning_and_torch_write_them(model: Model, tmp_path: Path) -> None:
    for content, name in (
        (model.state, "no suffix"),
        ({"state_dict": model.state, "global_step": 3, "epoch": 1}, "named.safetensors"),
    ):
        torch.save(content, tmp_path / name)
        assert same(model.load(tmp_path / name), model.state)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_floats_are_cast_and_the_result_reloads(model: Model, tmp_path: Path, dtype: str) -> None:
    told: list[float] = []
    path = convert_weights(
        model.file, tmp_path / "a.safetensors", dtype=dtype, config=model.config, on_progress=told.append
    )
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert same(load_file(path), {name: value.to(kind) for name, value in model.state.items()})
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_folder_of_shards_and_of_fp16_variants_loads(model: Model, tmp_path: Path) -> None:
    for part in ("unet", "vae", "image_encoder"):
        (tmp_path / part).mkdir()
        (whole,) = (model.folder / part).glob("*.safetensors")
        state = {name: value.half() for name, value in load_file(whole).items()}
        stem = whole.name.removesuffix(".safetensors")
        if part == "unet":
            names = sorted(state)
            shards = {f"{stem}.fp16-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
            for shard, held in shards.items():
                save_file({name: state[name] for name in held}, tmp_path / part / shard)
            index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
            (tmp_path / part / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))
        else:
            save_file(state, tmp_path / part / f"{stem}.fp16.safetensors")
    loaded = model.load(tmp_path)
    used = {name: value.half().float() for name, value in model.state.items() if name.startswith(UNET)}
    assert same({name: loaded[name] for name in used}, used)
    # What such a folder lacks: the copy of the encoder, which the quantising convolution is taken into, and the unused.
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    engine = build_engine(model.config)
    load_weights(engine, tmp_path, CPU, torch.float32)
    conditioner = engine.conditioner.embedders[3].encoder
    copy, wanted = engine.first_stage_model.moments(pictures), conditioner.moments(pictures)
    assert (copy - wanted).norm() / wanted.norm() < 2e-3  # it is kept in float16
    assert not conditioner.decoder.conv_in.weight.any()


@pytest.mark.parametrize("names", ["ours", "bare", "theirs"])
def test_a_network_alone_is_laid_over_a_base(model: Model, tmp_path: Path, names: str) -> None:
    network = {name: value + 1 for name, value in model.state.items() if name.startswith(UNET)}
    bare = {name.removeprefix(UNET): value for name, value in network.items()}
    places = unet_counterparts(bare)
    theirs = {places[name].names[0]: value for name, value in bare.items()}
    path = tmp_path / "few_steps.safetensors"
    save_file({"ours": network, "bare": bare, "theirs": theirs}[names], path)
    for base in (model.file, model.folder):
        assert same(model.load(path, base), model.state | network)
    with pytest.raises(WeightsError, match=r"holds the network alone.*--base"):
        model.load(path)


@pytest.mark.parametrize("layout", ["svd", "svd_image_decoder", "sv3d_u", "sv3d_p"])
def test_official_files_are_recognised_by_their_headers(layout: str, tmp_path: Path) -> None:
    path = write_empty(tmp_path / "any name", official_layout(layout))
    named = recognise(path)
    assert layout in named
    for name in named:
        assert {n: tuple(v.shape) for n, v in build_engine(VERSIONS[name].config_path).state_dict().items()} == (
            official_layout(layout)
        )


@pytest.mark.parametrize("layout", ["svd", "svd_image_decoder"])
def test_diffusers_modules_of_full_size_take_the_official_tensors(layout: str) -> None:
    pytest.importorskip("diffusers")
    from sgm.config import load_config
    from tests.diffusers_weights import autoencoder, image_tower, part, unet

    params = load_config(VERSIONS[layout].config_path)["model"]["params"]
    state = {name: torch.empty(shape, device="meta") for name, shape in official_layout(layout).items()}
    unet(params["network_config"]["params"], part(state, "model.diffusion_model"), 14)  # strict
    if layout == "svd":
        encoder = part(state, "conditioner.embedders.3.encoder")
        encoder = {name: value for name, value in encoder.items() if name.startswith(("encoder.", "quant_conv."))}
        coder = params["first_stage_config"]["params"]["decoder_config"]["params"]
        autoencoder(coder, encoder, part(state, "first_stage_model.decoder"))
    import open_clip

    with torch.device("meta"):
        arch = open_clip.get_model_config("ViT-H-14")
        assert arch is not None
        image_tower(arch, part(state, "conditioner.embedders.0.open_clip.model.visual"))


@pytest.mark.parametrize("case", CASES)
def test_the_folder_in_diffusers_own_pipeline_makes_our_frames(
    models: dict[str, Model], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pipeline = diffusers.StableVideoDiffusionPipeline.from_pretrained(models[case].folder)
    pipeline.set_progress_bar_config(disable=True)
    request = VideoRequest(
        "svd", frames=3, steps=4, height=64, width=128, cond_aug=0.0, fps=9, motion_bucket=60, max_guidance=2.5
    )
    generator = torch.Generator().manual_seed(5)
    picture = Image.fromarray(torch.randint(0, 256, (64, 128, 3), generator=generator, dtype=torch.uint8).numpy())

    engine = build_engine(models[case].config)
    load_weights(engine, models[case].folder, CPU, torch.float32)
    engine.freeze()
    taken: list[Tensor] = []
    decode = engine.decode_clip
    monkeypatch.setattr(engine, "decode_clip", lambda *arguments: taken.append(decode(*arguments)) or taken[-1])
    generate(engine, request, picture)
    ours = (taken[0].clamp(-1, 1) + 1) / 2

    # The same draws as ours: the conditioning's noise, of no weight here, then the latents.
    generator = torch.Generator().manual_seed(request.seed)
    torch.randn((1, 3, 64, 128), generator=generator)
    latents = torch.randn((3, 4, 64 // engine.factor, 128 // engine.factor), generator=generator)
    theirs = pipeline(
        picture,
        height=64,
        width=128,
        num_frames=3,
        num_inference_steps=4,
        min_guidance_scale=1.0,
        max_guidance_scale=2.5,
        fps=9,
        motion_bucket_id=60,
        noise_aug_strength=0.0,
        decode_chunk_size=3,
        latents=latents[None],
        output_type="pt",
    ).frames[0]
    assert ours.shape == theirs.shape
    assert ours.std() > 0.01
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-3


def test_a_version_s_status_says_ready_on_disk_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def status(version: str) -> tuple[str, str]:
        found = version_status(version)
        return found.state, found.problem

    missing = version_status("svd_xt")
    assert (missing.state, missing.path, missing.size) == ("missing", None, 0)
    assert missing.command == "sgm download svd_xt"
    assert missing.licence == "Stability AI Community Licence"
    assert missing.page == "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt"
    assert status("svd_tiny") == ("ready", "")

    layout = official_layout("svd")
    network = {name.removeprefix(UNET): shape for name, shape in layout.items() if name.startswith(UNET)}
    write_empty(tmp_path / "svd_xt_lcm.safetensors", network)
    assert status("svd_xt_lcm") == ("on disk", "It is laid over svd_xt, which is missing.")
    assert version_status("svd_xt_lcm").command == "sgm download svd_xt"
    path = write_empty(tmp_path / "svd_xt.safetensors", layout)
    ready = version_status("svd_xt")
    assert (ready.state, ready.path, ready.command) == ("ready", path, "")
    assert ready.size == path.stat().st_size > 4.7e9
    assert ready.location == "svd_xt.safetensors, 4.78 GB"
    monkeypatch.chdir(tmp_path.parent)
    assert ready.location == f"{Path(tmp_path.name, 'svd_xt.safetensors')}, 4.78 GB"
    assert status("svd_xt_lcm") == ("ready", "")

    with path.open("r+b") as file:
        file.truncate(10**9)
    state, problem = status("svd_xt")
    assert state == "on disk"
    assert "is cut short" in problem
    write_empty(path, network)
    assert "holds the network alone" in status("svd_xt")[1]
    write_empty(path, official_layout("sv3d_p"))
    assert status("svd_xt")[1].endswith("is not svd_xt: it fits sv3d_p.")

    # As the hub lays its repositories out.
    (tmp_path / "sv3d").mkdir()
    write_empty(tmp_path / "sv3d" / "sv3d_u.safetensors", official_layout("sv3d_u"))
    assert status("sv3d_u") == ("ready", "")
    assert status("sv3d_p")[0] == "missing"


# What is wrong with a file.


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def bad_files(folder: Path, good: Path) -> dict[str, str]:
    """Writes them; name -> what is said of it."""
    whole = good.read_bytes()
    content = {
        "empty": (b"", "is empty"),
        "cut in its header": (whole[:1000], "is cut short: it has 1,000 bytes, its header alone"),
        "cut in its data": (whole[:-10], "is cut short: its header speaks of"),
        "longer than it says": (whole + b"more", "has something behind its end"),
        "shape and bytes disagree": (header({"a": entry([4], 0, 8)}, bytes(8)), "contradicts itself: .* 16 bytes"),
        "overlapping": (header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "contradicts itself"),
        "negative": (header({"a": entry([-2], 0, 8)}, bytes(8)), "contradicts itself"),
        "end beyond the file": (header({"a": entry([2**40], 0, 2**42)}), "is cut short"),
        "header of 100 MB": ((100 << 20).to_bytes(8, "little") + b"{" + bytes(100), "header has 105 MB"),
        "header of nonsense": (header({"a": 7}), "cannot be read as safetensors"),
        "unknown dtype": (header({"a": entry([1], 0, 1, "Q4")}, bytes(1)), "holds a as Q4; known are"),
        "pointer": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "that git-lfs left in place of the file .run `git lfs pull`",
        ),
        "web page": (b"<!DOCTYPE html><html>Log in</html>", "is a web page"),
        "bare pickle": (pickle.dumps(Code(folder / "ran")), "is a bare pickle, which can hold code"),
        "a few bytes": (whole[:7], "is cut short"),
        "text": (b"not weights at all, but some text", "cannot be read as safetensors, nor as"),
    }
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)
    said = {name: words for name, (_, words) in content.items()}

    with zipfile.ZipFile(folder / "zip bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    said["zip bomb"] = "compressed archive that would unpack from .* to 52,428,800 bytes"
    with zipfile.ZipFile(folder / "other zip", "w") as archive:
        archive.writestr("holiday.jpg", b"picture")
    said["other zip"] = "is a zip archive of holiday.jpg, not a PyTorch checkpoint"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Code(folder / "ran")}, folder / "code")
    said["code"] = r"needs (posix|nt)\.system to be opened.*could run code, so nothing of it was"
    torch.save({"a": torch.zeros(9)}, folder / "cut checkpoint")
    (folder / "cut checkpoint").write_bytes((folder / "cut checkpoint").read_bytes()[:300])
    said["cut checkpoint"] = "damaged or cut short zip archive"
    torch.save([1, 2], folder / "list")
    said["list"] = "holds a list, but a checkpoint is a dict of tensors"

    save_file({"unet.down_blocks.0.lora_up.weight": torch.zeros(1)}, folder / "lora")
    said["lora"] = "is a LoRA, which changes a model"
    save_file({"some.weight": torch.zeros(1), "other.bias": torch.zeros(1)}, folder / "unknown")
    said["unknown"] = "is of no known format. It holds other.bias, some.weight; known are a whole checkpoint"
    state = load_file(good)
    name = next(name for name in state if name.endswith("time_embed.0.weight"))
    state[name].view(-1)[7] = float("nan")
    save_file(state, folder / "not a number")
    said["not a number"] = "time_embed.0.weight holds NaN or infinity"
    state[name].view(-1)[7] = 1e6
    save_file(state, folder / "too large")
    said["too large"] = "time_embed.0.weight exceeds what float16 can hold; use bfloat16 or float32"
    said["nowhere"] = "There are no weights at"
    return said


def test_what_is_wrong_is_said_nothing_runs_and_nothing_is_left(model: Model, tmp_path: Path) -> None:
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    said = bad_files(inputs, model.file)
    for name, words in said.items():
        with pytest.raises(WeightsError, match=words) as caught:
            convert_weights(inputs / name, outputs / "a.safetensors", dtype="fp16", config=model.config)
        assert str(inputs / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(outputs.iterdir()), name
    assert not (inputs / "ran").exists()


def linked(model: Model, folder: Path) -> Path:
    """The model's diffusers folder anew, of links to its files' own folder."""
    for source in model.folder.rglob("*"):
        target = folder / source.relative_to(model.folder)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    return folder


def test_what_is_wrong_with_a_folder_is_said(model: Model, tmp_path: Path) -> None:
    def fails(folder: Path, words: str) -> None:
        with pytest.raises(WeightsError, match=words):
            model.load(folder)

    (tmp_path / "none").mkdir()
    fails(tmp_path / "none", "is a folder with nothing, but no diffusers folder: that has unet, vae, image_encoder")
    half = linked(model, tmp_path / "half")
    for file in [*(half / "vae").iterdir()]:
        file.unlink()
    fails(half, "vae holds no weights .nothing.: expected a .safetensors or .bin file")
    (half / "vae").rmdir()
    fails(half, "lacks vae: a diffusers folder has")

    out = linked(model, tmp_path / "out")
    (out / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = out / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../../secret.safetensors"}}))
    fails(out, "secret.safetensors', which leads out of its folder")
    index.write_text(
        json.dumps({"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}})
    )
    fails(out, "lacks 2 of the 2 parts that .*index.json names: m-00001-of-00002.safetensors, m-00002")
    index.write_text(json.dumps({"weight_map": {"a": "m-00001-of-00002.safetensors"}}))
    fails(out, r"index.json names 1 of the 2 parts that there are by their names .m-00001.*it is incomplete")
    index.write_text("no json")
    fails(out, "cannot be read as an index")

    odd = linked(model, tmp_path / "odd")
    weights = odd / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["conv_in.weight"]
    weights.unlink()
    save_file(state | {"surplus": torch.zeros(1)}, weights)
    fails(odd, r"1 missing: model.diffusion_model.input_blocks.0.0.weight; 1 unexpected: unet/surplus")


def test_tensors_of_a_folder_that_contradict_each_other_are_said(model: Model, tmp_path: Path) -> None:
    def fails(part: str, change: dict[str, Tensor | None], words: str) -> None:
        folder = linked(model, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (weights,) = (folder / part).glob("*.safetensors")
        state = {name: value for name, value in {**load_file(weights), **change}.items() if value is not None}
        weights.unlink()
        save_file(state, weights)
        with pytest.raises(WeightsError, match=words):
            open_weights(folder, {name: tuple(value.shape) for name, value in model.state.items()})

    query = "vision_model.encoder.layers.0.self_attn.q_proj"
    fails("image_encoder", {f"{query}.weight": torch.zeros(64, 63)}, r"in_proj_weight \(-1,\) instead of \(192, 64\)")
    fails("image_encoder", {f"{query}.bias": torch.zeros(())}, r"in_proj_bias \(-1,\) instead of \(192,\)")
    fails("image_encoder", {f"{query}.bias": torch.zeros(3)}, r"in_proj_bias \(131,\) instead of \(192,\)")
    fails("vae", {"quant_conv.bias": None}, r"1 missing: conditioner\.embedders\.3\.encoder\.quant_conv\.bias")
    fails("vae", {"quant_conv.weight": torch.zeros(1 << 40, 0)}, r"quant_conv\.weight \(1099511627776, 0\) instead of")


def test_parts_of_one_tensor_may_differ_in_dtype(model: Model, tmp_path: Path) -> None:
    folder = linked(model, tmp_path / "mixed")
    (weights,) = (folder / "image_encoder").glob("*.safetensors")
    state = {name: value.half() if ".q_proj." in name else value for name, value in load_file(weights).items()}
    weights.unlink()
    save_file(state, weights)
    convert_weights(folder, tmp_path / "a.safetensors", config=model.config)
    name = "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.0.attn.in_proj_weight"
    assert load_file(tmp_path / "a.safetensors")[name].equal(model.state[name].half())


def test_links_in_a_folder_are_followed(model: Model, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "elsewhere"
    blobs.mkdir(parents=True)
    for i, source in enumerate(path for path in model.folder.rglob("*") if path.is_file()):
        os.link(source, blobs / str(i))
        (snapshot / source.relative_to(model.folder)).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / source.relative_to(model.folder)).symlink_to(blobs / str(i))
    (snapshot / "unet").rename(tmp_path / "unet")
    (snapshot / "unet").symlink_to(tmp_path / "unet")
    assert same(model.load(snapshot), model.state)


def test_what_cannot_be_converted_is_said_before_the_work(model: Model, tmp_path: Path, monkeypatch) -> None:
    def fails(words: str, *args: object, **choices: object) -> None:
        with pytest.raises(UserError, match=words):
            convert_weights(*args, **{"config": model.config, **choices})  # pyright: ignore
        assert not [path for path in tmp_path.iterdir() if path.name != "taken.safetensors"]

    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    fails("exists already: give a new name", model.file, taken)
    fails("must end in .safetensors", model.file, tmp_path / "a.ckpt")
    fails("--to must be one of sgm, diffusers; got 'onnx'", model.file, tmp_path / "a", to="onnx")
    fails("--dtype must be one of fp16, bf16, fp32", model.file, tmp_path / "a.safetensors", dtype="fp8")
    fails("--version must be one of svd_tiny", model.file, tmp_path / "a.safetensors", version="svd_3")
    fails("fits none of svd_tiny, svd, ", model.file, tmp_path / "a.safetensors", config=None)
    tiny = VERSIONS["svd_tiny"].checkpoint_path
    fails("svd_tiny cannot become a diffusers folder: .* camera", tiny, tmp_path / "a", to="diffusers", config=None)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    fails("free: make room", model.file, tmp_path / "a", to="diffusers")


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size are POSIX")
@pytest.mark.parametrize("to", ["sgm", "diffusers"])
def test_a_disk_that_fills_half_way_leaves_nothing(model: Model, tmp_path: Path, to: str) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model.file.stat().st_size // 8, limits[1]))  # of any file
    try:
        with pytest.raises(UserError, match=r"cannot be written .*: make room or choose another"):
            convert_weights(model.file, tmp_path / "a.safetensors", to, config=model.config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


MEASURE = """
import sys
from sgm import VideoRequest, generate
from sgm.convert import convert_weights

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

small, large, config_small, config_large, out = sys.argv[1:]
convert_weights(small, out + "/small", "diffusers", "fp16", config=config_small)  # all that is imported on the way
before = peak()
convert_weights(large, out + "/large", "diffusers", "fp16", config=config_large)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_converting_takes_the_memory_of_a_few_tensors(model: Model, tmp_path: Path) -> None:
    config = write_config(tmp_path / "large.yaml", channels=160)
    shapes = shapes_of(config)
    large = write_empty(tmp_path / "large.safetensors", shapes, "F32")
    largest = 4 * max(torch.Size(shape).numel() for shape in shapes.values()) / 2**20
    args = [model.file, large, model.config, config, tmp_path]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = large.stat().st_size / 2**20
    assert size > 150
    assert float(done.stdout) < 4 * largest + 20 < size / 2
