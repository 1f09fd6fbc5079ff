"""One tolerance: weights load whatever program stored them, and what cannot be a model's is said by what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgm.convert import convert_weights
from sgm.formats.diffusers import UNET, folder_counterparts, tower_counterparts, unet_counterparts
from sgm.versions import VERSIONS
from sgm.weights import WeightsError, open_weights
from tests.small_model import made_up, official_layout, shapes_of, state_of, write_config, write_empty

Layout = dict[str, tuple[int, ...]]
FIRST = "first_stage_model."
TOWER = "conditioner.embedders.0.open_clip.model."
PARTS = ("unet", "vae", "image_encoder")


@lru_cache
def layout_of(version: str) -> Layout:
    return shapes_of(VERSIONS["svd_tiny"].config_path) if version == "svd_tiny" else official_layout(version)


def renamed(change: Callable[[str], str]) -> Callable[[Layout], Layout]:
    return lambda layout: {change(name): shape for name, shape in layout.items()}


def with_averages(layout: Layout) -> Layout:
    network = {name: shape for name, shape in layout.items() if name.startswith(UNET)}
    return layout | {f"model_ema.{name[6:].replace('.', '')}": shape for name, shape in network.items()}


def pruned(layout: Layout) -> Layout:
    """Without what computing frames does not need, and one copy of the encoder."""
    encoders = ("conditioner.embedders.3.encoder.", "conditioner.embedders.1.encoder.")
    if any(name.startswith(f"{FIRST}encoder.") for name in layout):
        layout = {name: shape for name, shape in layout.items() if not name.startswith(encoders)}
    unused = tuple(f"{encoder}{part}" for encoder in encoders for part in ("decoder.", "post_quant_conv."))
    layout = {name: shape for name, shape in layout.items() if not name.startswith(unused)}
    return {n: s for n, s in layout.items() if not n.startswith(TOWER) or n.startswith(f"{TOWER}visual.")}


def from_comfyui(layout: Layout) -> Layout:
    """Pruned, the image tower under transformers' names."""
    visual = f"{TOWER}visual."
    theirs = tower_counterparts([name.removeprefix(visual) for name in layout if name.startswith(visual)])
    out = {}
    for name, shape in pruned(layout).items():
        if not name.startswith(visual):
            out[name] = shape
            continue
        counterpart = theirs[name.removeprefix(visual)]
        for new, piece in zip(counterpart.names, counterpart.theirs(torch.empty(shape, device="meta")), strict=True):
            out[visual + new] = tuple(piece.shape)
    return out | {f"{visual}vision_model.embeddings.position_ids": (1, 257)}


PROGRAMS: dict[str, tuple[Callable[[Layout], Layout], str]] = {
    "this one": (dict, ""),
    "DistributedDataParallel": (renamed(lambda name: f"module.{name}"), "`module.` taken off its names"),
    "torch.compile": (renamed(lambda name: f"_orig_mod.{name}"), "`_orig_mod.` taken off its names"),
    "torch.compile of the network": (
        renamed(lambda name: name.replace(UNET, "model._orig_mod.diffusion_model.")),
        "`_orig_mod.` taken off its names",
    ),
    "both": (renamed(lambda name: f"module._orig_mod.{name}"), "`_orig_mod.` and `module.` taken off its names"),
    "a trainer": (renamed(lambda name: f"engine.{name}"), "`engine.` taken off its names"),
    "averages of all": (renamed(lambda name: f"ema_model.{name}"), "`ema_model.` taken off its names"),
    "averages alone": (
        lambda layout: {n: s for n, s in with_averages(layout).items() if not n.startswith(UNET)},
        "the network is there as moving averages alone, which are taken",
    ),
    "averages": (with_averages, "moving averages left out (`sgm convert --ema` takes them)"),
    "averages, wrapped": (
        lambda layout: {f"module.{name}": shape for name, shape in with_averages(layout).items()},
        "`module.` taken off its names; ",
    ),
    "a marker": (lambda layout: layout | {"v_pred": (0,)}, "left out, since this model has no place for it: v_pred"),
    "schedule and loss": (
        lambda layout: (
            layout | {"betas": (1000,), "alphas_cumprod": (1000,), f"{FIRST}loss.logvar": (), "global_step": ()}
        ),
        "no place for it: betas, alphas_cumprod, global_step",
    ),
    "with the text tower": (
        lambda layout: layout | {f"{TOWER}transformer.resblocks.0.ln_1.weight": (8,), f"{TOWER}attn_mask": (77, 77)},
        "",
    ),
    "pruned": (pruned, ""),
    "ComfyUI": (from_comfyui, ""),
}


@pytest.mark.parametrize(
    ("version", "program"),
    [
        *(("svd_tiny", program) for program in PROGRAMS),
        *(
            (version, program)
            for version in ("svd", "sv3d_u")
            for program in ("averages, wrapped", "pruned", "ComfyUI")
        ),
        ("svd_image_decoder", "ComfyUI"),
    ],
)
def test_weights_load_from_whatever_program_stored_them(version: str, program: str, tmp_path: Path) -> None:
    change, note = PROGRAMS[program]
    layout = layout_of(version)
    with open_weights(write_empty(tmp_path / "any.safetensors", change(layout)), layout) as weights:
        assert {name: tensor.shape for name, tensor in weights.tensors.items()} == layout
        assert note in "; ".join(weights.notes)
        assert bool(note) == bool(weights.notes)
    needed = {"svd": f"{UNET}out.2.bias", "sv3d_u": f"{FIRST}decoder.conv_in.bias"}.get(
        version, f"{TOWER}visual.ln_pre.bias"
    )
    lacking = change({name: shape for name, shape in layout.items() if name != needed})
    with pytest.raises(WeightsError, match=rf"does not fit this model\. 1 missing: {needed}"):
        open_weights(write_empty(tmp_path / "lacking.safetensors", lacking), layout)


def folder_of(layout: Layout, folder: Path, *parts: str) -> Path:
    """A diffusers folder of zeros with those parts."""
    shapes: dict[str, Layout] = {}
    for name, (part, counterpart) in folder_counterparts(layout)[0].items():
        pieces = counterpart.theirs(torch.empty(layout[name], device="meta"))
        shapes.setdefault(part, {}).update(zip(counterpart.names, (tuple(p.shape) for p in pieces), strict=True))
    for part in parts:
        (folder / part).mkdir(parents=True)
        write_empty(folder / part / "diffusion_pytorch_model.safetensors", shapes[part])
    return folder


def test_parts_of_a_model_are_laid_over_a_base(tmp_path: Path) -> None:
    layout = shapes_of(write_config(tmp_path / "small.yaml"))
    base = write_empty(tmp_path / "base.safetensors", pruned(layout))
    network = {name.removeprefix(UNET): shape for name, shape in layout.items() if name.startswith(UNET)}
    theirs = {new.names[0]: network[name] for name, new in unet_counterparts(network).items()}
    checkpoint = folder_of(layout, tmp_path / "checkpoint-1000", "unet")  # as accelerate leaves it
    (checkpoint / "optimizer.bin").write_bytes(b"x")
    bare = checkpoint / "unet"
    only = {name: shape for name, shape in layout.items() if not name.startswith("conditioner.")}
    files = {
        "ours": {UNET + name: shape for name, shape in network.items()},
        "without a prefix": network,
        "compiled": {f"_orig_mod.{name}": shape for name, shape in network.items()},
        "theirs": theirs,
        "theirs, wrapped": {f"module.unet.{name}": shape for name, shape in theirs.items()},
        "no image encoder": only,
        "with a marker": network | {"v_pred": (0,), "model_ema.decay": ()},
    }
    places = {name: write_empty(tmp_path / f"{name}.safetensors", shapes) for name, shapes in files.items()}
    places |= {
        "checkpoint": checkpoint,
        "bare": bare,
        "no vae": folder_of(layout, tmp_path / "2", "unet", "image_encoder"),
    }
    for name, path in places.items():
        with open_weights(path, layout, base) as weights:
            assert {name: tensor.shape for name, tensor in weights.tensors.items()} == layout, name
            assert weights.base == base
        alone = "is not whole: the" if name.startswith("no ") else "holds the network alone: the image encoder and the"
        with pytest.raises(WeightsError, match=rf"{alone} .* must come from a base.*--base"):
            open_weights(path, layout)
    with pytest.raises(WeightsError, match=r"takes .* from a base, which does not serve: .* the network alone"):
        open_weights(bare, layout, places["ours"])
    del theirs["conv_out.bias"]
    with pytest.raises(WeightsError, match=rf"does not fit this model. 1 missing: {UNET}out.2.bias"):
        open_weights(write_empty(tmp_path / "theirs.safetensors", theirs), layout, base)


def test_a_folder_of_one_file_stands_for_the_file(tmp_path: Path) -> None:
    layout = layout_of("svd_tiny")
    write_empty(tmp_path / "epoch3.safetensors", layout)
    assert open_weights(tmp_path, layout).tensors.keys() == layout.keys()
    write_empty(tmp_path / "epoch4.safetensors", layout)
    with pytest.raises(WeightsError, match=r"holds several files of weights .epoch3.safetensors, epoch4.*: give one"):
        open_weights(tmp_path, layout)


SD = {f"{UNET}input_blocks.{i}.0.in_layers.0.weight": (320,) for i in range(12)}
TEXT = {f"text_model.encoder.layers.{i}.layer_norm1.weight": (8,) for i in range(12)}
OTHERS: dict[str, tuple[Layout, str]] = {
    "svd": (layout_of("svd"), "these are svd's weights: add --version svd, svd_xt or svd_xt_1_1, which have the same"),
    "sv3d_p": (layout_of("sv3d_p"), "these are sv3d_p's weights: add --version sv3d_p\\."),
    "network": (
        {name: shape for name, shape in layout_of("svd").items() if name.startswith(UNET)},
        "these are svd's weights: add --version svd, svd_image_decoder, svd_xt, .* or svd_xt_lcm",
    ),
    "SD 1.5": (
        SD | {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,), "alphas_cumprod": (1000,)},
        "is a model that is told what to draw by text",
    ),
    "SDXL": (
        SD | {"conditioner.embedders.1.model.ln_final.weight": (8,)},
        "is a model that is told what to draw by text",
    ),
    "SD's network": (SD, "is a network for single pictures, without layers over frames"),
    "diffusers' SD": ({f"down_blocks.{i}.resnets.0.norm1.weight": (8,) for i in range(4)}, "is a network for single"),
    "a transformer": (
        {f"{UNET}double_blocks.{i}.img_attn.norm.key_norm.scale": (8,) for i in range(4)},
        "is a diffusion transformer, which is another kind of network",
    ),
    "LoRA": (
        {f"unet.down_blocks.{i}.attn.to_q.lora_{x}.weight": (4, 8) for i in range(4) for x in "AB"},
        "is a LoRA, which changes a model and is none: give it with --lora",
    ),
    "kohya": ({f"lora_unet_down_{i}.{x}": (1,) for i in range(4) for x in ("alpha", "lora_up.weight")}, "is a LoRA"),
    "AnimateDiff": ({f"down_blocks.{i}.motion_modules.0.norm.weight": (8,) for i in range(4)}, "is a motion module"),
    "VAE": ({f"{part}.conv_in.weight": (8,) for part in ("encoder", "decoder")}, "is an autoencoder alone .a VAE."),
    "first stage": (
        {name: shape for name, shape in layout_of("svd").items() if name.startswith(FIRST)},
        "is an autoencoder alone",
    ),
    "text encoder": (TEXT, "is a text encoder alone"),
    "CLIP": ({f"vision_model.{name}": shape for name, shape in TEXT.items()}, "is an image encoder alone"),
    "ControlNet": (SD | {"control_model.input_hint_block.0.weight": (8,)}, "is a ControlNet, or has one in it"),
    "scaled fp8": (
        SD | {f"{UNET}input_blocks.{i}.0.scale_weight": () for i in range(2)},
        "is quantised .* fp16 or bf16",
    ),
    "bitsandbytes": (
        layout_of("svd_tiny")
        | {
            f"{UNET}time_embed.{i}.weight.{x}": (8,) for i in (0, 2) for x in ("absmax", "quant_map", "quant_state.nf4")
        },
        r"is quantised .it holds .*time_embed.0.weight.absmax.*, which is not supported: take the weights in fp16",
    ),
    "nothing known": ({"a.weight": (1,)}, "is of no known format. It holds a.weight; known are a whole checkpoint"),
    "nothing": ({}, "is of no known format. It holds nothing"),
    "a long name": (
        {"x" * 10**6: (1,)},
        r"whose name has 1,000,000 characters .x+…x+.: it is damaged, or no",
    ),
    "\x1b]0;owned\x07": ({"\x1b]0;owned\x07.weight": (1,)}, r"It holds \\x1b\]0;owned\\x07.weight"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_a_model_s_weights_is_said_by_what_it_is(kind: str, tmp_path: Path) -> None:
    shapes, said = OTHERS[kind]
    path = write_empty(tmp_path / "other.safetensors", shapes)
    with pytest.raises(WeightsError, match=said) as caught:
        open_weights(path, layout_of("svd_tiny"))
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
def test_numbers_that_are_no_floats_are_no_weights(kind: torch.dtype, tmp_path: Path) -> None:
    config = write_config(tmp_path / "small.yaml")
    state = {
        name: value.to(kind) if name.startswith(UNET) else value for name, value in state_of(made_up(config)).items()
    }
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match=r"holds .* as \w+: weights are floating-point numbers.*fp16 or bf16"):
        convert_weights(tmp_path / "whole.safetensors", tmp_path / "new.safetensors", config=config)
    assert not (tmp_path / "new.safetensors").exists()


def test_what_is_missing_or_elsewhere_has_the_right_values(tmp_path: Path) -> None:
    config = write_config(tmp_path / "small.yaml")
    state = state_of(made_up(config))
    shapes = {name: tuple(value.shape) for name, value in state.items()}

    def converted(values: dict[str, Tensor], ema: bool = False) -> dict[str, Tensor]:
        source, target = tmp_path / "in.ckpt", tmp_path / "out.safetensors"
        torch.save({"state_dict": values, "epoch": 1}, source)
        target.unlink(missing_ok=True)
        return load_file(convert_weights(source, target, config=config, ema=ema))

    kept = pruned(shapes)
    loaded = converted({f"module.{name}": state[name] for name in kept})
    assert all(torch.equal(loaded[name], state[name]) for name in kept)
    encoder = "conditioner.embedders.3.encoder."
    for name in (name for name in kept if name.startswith(f"{FIRST}encoder.")):
        assert torch.equal(loaded[encoder + name.removeprefix(FIRST)], state[name])
    assert torch.equal(loaded[f"{encoder}quant_conv.weight"][:, :, 0, 0], torch.eye(8))  # folded into the copy
    assert not loaded[f"{encoder}quant_conv.bias"].any()
    assert not loaded[f"{encoder}decoder.conv_in.weight"].any()

    averages = {f"model_ema.{n[6:].replace('.', '')}": v + 1 for n, v in state.items() if n.startswith(UNET)}
    averages |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    for name, value in converted(state | averages, ema=True).items():
        assert torch.equal(value, state[name] + name.startswith(UNET)), name
    dotted = {f"ema_model.{name}": value + 2 for name, value in state.items() if name.startswith(UNET)}
    assert torch.equal(converted(state | dotted, ema=True)[f"{UNET}out.2.bias"], state[f"{UNET}out.2.bias"] + 2)
    with pytest.raises(WeightsError, match=r"holds no moving averages .model_ema.*: leave out --ema"):
        converted(state, ema=True)
    shutil.rmtree(tmp_path)
