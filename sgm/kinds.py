"""What a set of tensors is, told by names and shapes: the weights of a known version, or a file of another kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

import torch

from sgm.config import load_config
from sgm.errors import printable
from sgm.formats.diffusers import FIRST_STAGE, UNET, is_temporal
from sgm.versions import ALL_VERSIONS

Shapes = Mapping[str, tuple[int, ...]]

_FORMATS = (
    "known are a whole checkpoint (model.diffusion_model.*, conditioner.*, first_stage_model.*), a diffusers folder, "
    "and a network alone to be laid over a base"
)
_LABELS = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")
# What other programs store beside the values that they have quantised.
_QUANTISED = re.compile(
    r"(?:^|[./])(?:scale_weight|weight_scale(?:_\w+)?|scale_input|input_scale|scaled_fp8|comfy_quant|absmax|quant_map|"
    r"SCB|quant_state\.\w{1,60}|weight_format|qweight|qzeros|g_idx|zero_point|\w+_qtype|_data|_scale)$"
)
# Parts of the names that most tensors of another kind of file have, and its description.
_OTHER_KINDS = (
    (
        r"lora[_.]|\.alpha$|hada_|lokr_|dora_scale|\.diff(_b)?$",
        "a LoRA, which changes a model and is none: give it with --lora",
    ),
    (r"motion_modules?\.", "a motion module for another kind of model (AnimateDiff)"),
    (
        r"vision_model\.|visual_projection|^visual\.",
        "an image encoder alone; give the whole checkpoint or the diffusers folder",
    ),
    (
        r"^(text_model|transformer\.text_model|text_encoder|token_embedding)\b|^(en|de)coder\.block\.\d+\.layer\.",
        "a text encoder alone",
    ),
    (
        r"^(first_stage_model|vae)?\W?(encoder|decoder|quant_conv|post_quant_conv|loss)\.",
        "an autoencoder alone (a VAE); give the whole checkpoint or the diffusers folder",
    ),
)
_TEXT = re.compile(r"cond_stage_model\.|text_model\.|conditioner\.embedders\.\d+\.(transformer|model)\.|text_encoder")
_CONTROL = re.compile(r"control_model\.|controlnet_|input_hint_block\.|zero_convs\.")
_NETWORK = re.compile(r"(^|[./])(input_blocks|down_blocks)\.")
_TRANSFORMER = re.compile(r"(^|[./])(double_blocks|joint_blocks|transformer_blocks|blocks)\.\d+\.")
_VIEW_LAYERS = "motion_blocks.", "time_mixer_motion."  # that networks for several views alone have, some of them both
_TEMPORAL = re.compile(r"time_stack\.|time_mix_blocks\.|temporal_|motion_modules\.")


def versions_of(shapes: Shapes) -> list[str]:
    """The versions whose weights these can be, by the network's inputs and layers and, if it is there, the decoder."""
    label = next((shape for name, shape in shapes.items() if name.endswith(_LABELS) and "ema" not in name), None)
    decoder = [name for name in shapes if FIRST_STAGE in name or name.startswith(("vae/", "vae."))]
    found = label, *(any(layer in name for name in shapes) for layer in _VIEW_LAYERS)
    return [
        name
        for name in ALL_VERSIONS
        if _fingerprint(name)[0] == found and (not decoder or _fingerprint(name)[1] == is_temporal(decoder))
    ]


@lru_cache
def _fingerprint(version: str) -> tuple[tuple[tuple[int, int], bool, bool], bool]:
    """Shape of the network's `label_emb` weight and which of _VIEW_LAYERS it has; whether the decoder is temporal."""
    params = load_config(ALL_VERSIONS[version].config_path)["model"]["params"]
    network = params["network_config"]["params"]
    decoder = params["first_stage_config"]["params"].get("decoder_config", {}).get("target", "")
    label = 4 * network["model_channels"], network["adm_in_channels"]
    views = "motion_context_dim" in network, network.get("separate_motion_merge_factor", False)
    return (label, *views), decoder.endswith("VideoDecoder")


def unusable(dtypes: Mapping[str, torch.dtype], used: Collection[str]) -> str | None:
    """Why tensors of these dtypes are no weights: quantised, or no floating-point numbers. None where they are.

    used: the names of those that a model needs.
    """
    marks = [name for name in dtypes if _QUANTISED.search(name)]
    if len(marks) > 1 or any(name in marks for name in used):
        return f"is quantised (it holds {listed(marks, 3)}), which is not supported: take the weights in fp16 or bf16."
    other = [name for name in used if not dtypes[name].is_floating_point]
    if other:
        kinds = ", ".join(sorted({str(dtypes[name]).removeprefix("torch.") for name in other}))
        return (
            f"holds {listed(other, 3)} as {kinds}: weights are floating-point numbers. It may be quantised, which is "
            "not supported: take the weights in fp16 or bf16."
        )
    return None


def mismatch(shapes: Shapes, expected: Shapes, faults: str) -> str:
    """Why tensors do not fit a model that expects others: what they are, if that is known, else `faults`."""
    names, fits, wanted = list(shapes), versions_of(shapes), versions_of(expected)
    whole = any(FIRST_STAGE in name or name.startswith("vae") for name in names)
    fits = [name for name in fits if not (whole and ALL_VERSIONS[name].base)]
    if fits and wanted and not set(fits) & set(wanted):
        *others, last = fits
        choice = f"{', '.join(others)} or {last}" if others else last
        alike = ", which have the same tensors" if others else ""
        return f"is of another version: these are {fits[0]}'s weights: add --version {choice}{alike}."
    if kind := other_kind(names):
        return kind
    if not any(name in expected or name.startswith(UNET) or _NETWORK.search(name) for name in names):
        return f"is of no known format. It holds {listed(names, 5) or 'nothing'}; {_FORMATS}."
    return f"does not fit this model. {faults}"


def other_kind(names: list[str]) -> str | None:
    """What tensors of these names are, if that is known and no model of ours: "is a LoRA ..."."""
    kind = _kind(names)
    return f"is {kind} (it holds {listed(names, 3)})." if kind else None


def _kind(names: list[str]) -> str | None:
    network = [name for name in names if _NETWORK.search(name)]
    if any(_CONTROL.search(name) for name in names):
        return "a ControlNet, or has one in it; those are not supported"
    for pattern, kind in _OTHER_KINDS:
        if sum(bool(re.search(pattern, name)) for name in names) * 2 > len(names):
            return kind
    if not network and sum(bool(_TRANSFORMER.search(name)) for name in names) * 2 > len(names):
        return "a diffusion transformer, which is another kind of network"
    if not network or any(_TEMPORAL.search(name) for name in network):
        return None
    if any(_TEXT.search(name) for name in names):
        return "a model that is told what to draw by text, and makes no video from a picture"
    return "a network for single pictures, without layers over frames"


def listed(names: Iterable[str], count: int = 8) -> str:
    """Names for a message: at most `count` of them, each at most 200 characters long."""
    names = list(names)
    shown = ", ".join(printable(name, 200) for name in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")
