"""Conversion of weights from one format into another, one tensor in memory at a time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm.conditioning.vision import read_architecture
from sgm.config import config_errors, load_config
from sgm.engine import build_engine
from sgm.errors import UserError
from sgm.formats.diffusers import folder_counterparts, is_temporal
from sgm.formats.files import Layout, write_tensors
from sgm.formats.folder import LEFTOVERS
from sgm.installed import recognise
from sgm.loras import Lora
from sgm.matching import Shapes
from sgm.merging import Merger
from sgm.paths import check_writable, exists, replacing, user_path, writes_explained
from sgm.versions import ALL_VERSIONS
from sgm.weights import WeightsError, open_weights, shapes_of

logger = logging.getLogger(__name__)

FORMATS = ("sgm", "diffusers")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CPU = torch.device("cpu")


def convert_weights(
    source: str | Path,
    target: str | Path,
    to: str = "sgm",
    dtype: str | None = None,
    *,
    version: str | None = None,
    base: str | Path | None = None,
    config: str | Path | None = None,
    ema: bool = False,
    loras: Sequence[Lora] = (),
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write weights of any supported format as an official checkpoint file ("sgm") or as a diffusers folder.

    dtype: "fp16", "bf16" or "fp32" (default: as stored). version: the weights' model version (default: recognised by
    the network's inputs and the type of decoder). base: the weights that supply the parts that `source` lacks. config:
    the YAML of a model that is no known version. ema: take the moving averages of the network's weights, which some
    training programs store, in place of the weights. loras: those to merge into the weights, see `loras_of`.
    on_progress(share) is called with the share that is written, 0 to 1. What is written is opened again and checked
    before it gets its name, which is never another's.
    Raises UserError where the target exists or an option is unknown, WeightsError for unusable sources, ConfigError
    for a YAML that describes no model.
    """
    source, target = user_path(source), user_path(target)
    _one_of("--to", to, FORMATS)
    if dtype is not None:
        _one_of("--dtype", dtype, DTYPES)
    if version is not None:
        _one_of("--version", version, ALL_VERSIONS)
    if version is not None and config is not None:
        raise UserError(f"--version {version} and --config {config} both say what model it is: give one of them.")
    taken = UserError(f"{target} exists already: give a new name.")
    if exists(target) or target.is_symlink():
        raise taken
    if to == "sgm" and target.suffix != ".safetensors":
        raise UserError(f"{target} must end in .safetensors.")
    check_writable(target.parent)
    model = ALL_VERSIONS[version or _recognised(source, base)] if config is None else None
    path = model.config_path if model else user_path(str(config))
    expected = shapes_of(build_engine(path))
    params = load_config(path)["model"]["params"]
    name = model.name if model else str(config)
    if to == "diffusers":
        _check_inputs(params, name)
    with open_weights(source, expected, base, ema=ema) as weights, Merger(loras, expected, name) as merger:
        if base is not None and weights.base is None:
            raise UserError(f"{source} is a whole model, which takes nothing from a base: leave out the base {base}.")
        weights.tell_notes()
        for note in merger.notes:
            logger.warning("%s", note)
        kind = DTYPES[dtype] if dtype else None
        layout = {name: (kind or tensor.dtype, tensor.shape) for name, tensor in weights.tensors.items()}
        with config_errors(path):
            files = _descriptions(params, layout, model.frames if model else 14) if to == "diffusers" else {}
        total = sum(math.prod(shape) * kind.itemsize for kind, shape in layout.values())
        check_writable(target.parent, total + (64 << 20))
        done = 0

        def on_read(size: int) -> None:
            nonlocal done
            done += size
            if on_progress is not None:
                on_progress(done / total)

        def read(name: str) -> Tensor:
            if name not in merger.names:
                return weights.cast(name, kind, _CPU)
            return merger.apply(name, weights.cast(name, torch.float32, _CPU), layout[name][0])

        with writes_explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(target, new=True) as unnamed:
                    if to == "sgm":
                        write_tensors(unnamed, layout, read, on_read)
                    else:
                        _write_folder(unnamed, files, layout, read, on_read)
                    _check_written(unnamed, target, expected)
            except FileExistsError:
                raise taken from None
    logger.info("Wrote %s, %.2f GB.", target, total / 1e9)
    return target


def _write_folder(
    folder: Path,
    files: Mapping[str, Any],
    layout: Layout,
    read: Callable[[str], Tensor],
    on_read: Callable[[int], None],
) -> None:
    """Write a diffusers folder: `files`, its JSON files by name, and the tensors."""
    counterparts, unmapped = folder_counterparts(layout)
    parts: dict[str, dict[str, tuple[str, int]]] = {}  # part -> their name -> (our name, index among its counterparts)
    for name, (part, counterpart) in counterparts.items():
        parts.setdefault(part, {}).update({theirs: (name, i) for i, theirs in enumerate(counterpart.names)})
    folder.mkdir()
    for file, value in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for part, names in parts.items():
        file = "model.safetensors" if part == "image_encoder" else "diffusion_pytorch_model.safetensors"
        part_layout = {
            theirs: (layout[name][0], tuple(_pieces(counterparts[name][1], layout[name])[i].shape))
            for theirs, (name, i) in names.items()
        }
        write_tensors(
            folder / part / file,
            part_layout,
            lambda theirs, names=names: counterparts[names[theirs][0]][1].theirs(read(names[theirs][0]))[
                names[theirs][1]
            ],
            on_read,
        )
    write_tensors(folder / LEFTOVERS, {name: layout[name] for name in unmapped}, read, on_read)


def _check_written(written: Path, target: Path, expected: Shapes) -> None:
    try:
        open_weights(written, expected).close()
    except WeightsError as error:
        raise UserError(f"{target} was not made: what was written cannot be read again ({error}).") from error


def _pieces(counterpart: Any, entry: tuple[torch.dtype, tuple[int, ...]]) -> list[Tensor]:
    return counterpart.theirs(torch.empty(entry[1], device="meta"))


def _recognised(source: Path, base: str | Path | None) -> str:
    names = recognise(source)
    if base is not None:
        names = [name for name in names if name in recognise(base)]
    if not names:
        raise WeightsError(
            f"{source} fits none of {', '.join(ALL_VERSIONS)}: what its network takes, or its decoder's kind, differs. "
            "Give the model's YAML with --config."
        )
    if len(names) > 1:
        logger.info("%s may be %s, which have the same tensors; taken for %s.", source, " or ".join(names), names[0])
    return names[0]


def _check_inputs(params: Mapping[str, Any], name: str) -> None:
    keys = {config["input_key"] for config in params["conditioner_config"]["params"]["emb_models"]}
    expected = {"cond_frames_without_noise", "cond_frames", "fps_id", "motion_bucket_id", "cond_aug"}
    if keys != expected:
        other = ", ".join(sorted(keys ^ expected))
        raise UserError(
            f"{name} cannot become a diffusers folder: its inputs differ from that pipeline's in {other}. Use --to sgm."
        )


def _descriptions(params: Mapping[str, Any], layout: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """The JSON files of a diffusers folder, by name."""
    network = params["network_config"]["params"]
    embedders = {c["input_key"]: c["params"] for c in params["conditioner_config"]["params"]["emb_models"]}
    first = params["first_stage_config"]["params"]
    coder = (first.get("decoder_config") or {}).get("params") or first["ddconfig"]
    channels = [mult * network["model_channels"] for mult in network["channel_mult"]]
    attends = [2**i in network["attention_resolutions"] for i in range(len(channels))]
    width = [mult * coder["ch"] for mult in coder["ch_mult"]]
    temporal = is_temporal(layout)
    vae: dict[str, Any] = {
        "_class_name": "AutoencoderKLTemporalDecoder" if temporal else "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * len(width),
        "block_out_channels": width,
        "layers_per_block": coder["num_res_blocks"],
        "latent_channels": coder["z_channels"],
        "in_channels": coder["in_channels"],
        "out_channels": coder["out_ch"],
        "sample_size": 768,
        "scaling_factor": params["scale_factor"],
        "force_upcast": True,
    }
    if not temporal:
        vae["up_block_types"] = ["UpDecoderBlock2D"] * len(width)
        vae["use_post_quant_conv"] = "first_stage_model.post_quant_conv.weight" in layout
    sigmas = params.get("sampler_config", {}).get("params", {}).get("discretization_config", {}).get("params", {})
    return {
        "model_index.json": {
            "_class_name": "StableVideoDiffusionPipeline",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
            "vae": ["diffusers", vae["_class_name"]],
        },
        "unet/config.json": {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "in_channels": network["in_channels"],
            "out_channels": network["out_channels"],
            "down_block_types": [f"{'CrossAttn' if a else ''}DownBlockSpatioTemporal" for a in attends],
            "up_block_types": [f"{'CrossAttn' if a else ''}UpBlockSpatioTemporal" for a in attends[::-1]],
            "block_out_channels": channels,
            "addition_time_embed_dim": embedders["fps_id"]["outdim"],
            "projection_class_embeddings_input_dim": network["adm_in_channels"],
            "layers_per_block": network["num_res_blocks"],
            "cross_attention_dim": network["context_dim"],
            "transformer_layers_per_block": network["transformer_depth"],
            "num_attention_heads": [width // network["num_head_channels"] for width in channels],
            "num_frames": frames,
            "sample_size": 96,
        },
        "vae/config.json": vae,
        "image_encoder/config.json": _tower(embedders["cond_frames_without_noise"]["open_clip_embedding_config"]),
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            "crop_size": {"height": 224, "width": 224},
            "size": {"shortest_edge": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "sigma_min": sigmas.get("sigma_min", 0.002),
            "sigma_max": sigmas.get("sigma_max", 700.0),
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
        },
    }


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    arch = read_architecture((config.get("params") or {}).get("arch", "ViT-H-14"))
    vision = arch["vision_cfg"]
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": vision["width"],
        "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
        "projection_dim": arch["embed_dim"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_act": "quick_gelu" if arch.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-05,
    }


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}; got {value!r}.")
