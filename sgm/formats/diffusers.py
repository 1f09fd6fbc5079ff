"""Names and shapes of sgm's tensors ("ours") in diffusers' and transformers' modules ("theirs").

Everything follows from our names, which are those of the official checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm.formats.tensor_file import Shape, WeightsError

Rules = Iterable[tuple[str, str]]  # (prefix of our name, prefix of theirs)

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."

_RESIDUAL = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
]
_VIDEO_RESIDUAL = [
    *((f"time_stack.{ours}", f"temporal_res_block.{theirs}") for ours, theirs in _RESIDUAL),
    ("time_mixer.", "time_mixer."),
    ("mix_factor", "time_mixer.mix_factor"),
    *((ours, f"spatial_res_block.{theirs}") for ours, theirs in _RESIDUAL),
]
_TRANSFORMER = [
    ("time_stack.", "temporal_transformer_blocks."),
    ("time_pos_embed.0.", "time_pos_embed.linear_1."),
    ("time_pos_embed.2.", "time_pos_embed.linear_2."),
    ("", ""),  # other names are the same
]
_RESNET = [("nin_shortcut.", "conv_shortcut."), ("", "")]
_VIDEO_RESNET = [*_VIDEO_RESIDUAL, *((ours, f"spatial_res_block.{theirs}") for ours, theirs in _RESNET)]
_ATTENTION = [("norm.", "group_norm."), ("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0.")]
_TOWER_LAYER = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("attn.in_proj_", "self_attn.{}_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
]


@dataclass(frozen=True)
class Counterpart:
    """The tensors of theirs that correspond to one of ours. names: one, or three for query, key and value.

    form: "same"; "matrix", ours a 1x1 kernel and theirs a matrix; "transposed"; "stacked", ours the concatenation of
    three.
    """

    names: tuple[str, ...]
    form: str = "same"

    def shape(self, theirs: Sequence[Shape]) -> Shape:
        """The shape of ours, given those of theirs; (-1,), which no tensor has, where theirs contradict each other."""
        first = theirs[0]
        if self.form == "stacked":
            fits = all(theirs) and len({shape[1:] for shape in theirs}) == 1
            return (sum(shape[0] for shape in theirs), *first[1:]) if fits else (-1,)
        if self.form == "matrix" and len(first) == 2:
            return (*first, 1, 1)
        return first[::-1] if self.form == "transposed" and len(first) == 2 else first

    def ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """Convert their tensors to ours."""
        if self.form == "stacked":
            return torch.cat([value.to(theirs[0].dtype) for value in theirs])
        value = theirs[0]
        if self.form == "matrix" and value.ndim == 2:
            return value[:, :, None, None]
        return value.T if self.form == "transposed" and value.ndim == 2 else value

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Convert our tensor to theirs."""
        if self.form == "stacked":
            return list(ours.chunk(3))
        if self.form == "matrix":
            return [ours[:, :, 0, 0]]
        return [ours.T if self.form == "transposed" else ours]


def unet_counterparts(names: Collection[str]) -> dict[str, Counterpart]:
    """Our names without `model.diffusion_model.` -> tensors of diffusers' UNetSpatioTemporalConditionModel."""
    rules = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        *_nested("middle_block.0", "mid_block.resnets.0", _VIDEO_RESIDUAL),
        *_nested("middle_block.1", "mid_block.attentions.0", _TRANSFORMER),
        *_nested("middle_block.2", "mid_block.resnets.1", _VIDEO_RESIDUAL),
    ]
    inputs = 1 + max(_indices(names, r"input_blocks\.(\d+)\."), default=0)
    downs = sorted(_indices(names, r"input_blocks\.(\d+)\.0\.op\."))
    period = downs[0] if downs else inputs - 1  # blocks of a level, its downsampler included
    for i in range(1, inputs):
        level, j = divmod(i - 1, period)
        rules += _nested(f"input_blocks.{i}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
        rules += _nested(f"input_blocks.{i}.0", f"down_blocks.{level}.resnets.{j}", _VIDEO_RESIDUAL)
        rules += _nested(f"input_blocks.{i}.1", f"down_blocks.{level}.attentions.{j}", _TRANSFORMER)
    period += 0 if downs else 1
    for i in sorted(_indices(names, r"output_blocks\.(\d+)\.")):
        level, j = divmod(i, period)
        for last in (1, 2):
            rules += _nested(f"output_blocks.{i}.{last}.conv", f"up_blocks.{level}.upsamplers.0.conv")
        rules += _nested(f"output_blocks.{i}.0", f"up_blocks.{level}.resnets.{j}", _VIDEO_RESIDUAL)
        rules += _nested(f"output_blocks.{i}.1", f"up_blocks.{level}.attentions.{j}", _TRANSFORMER)
    return {name: Counterpart((theirs,)) for name, theirs in _renamed(names, rules)}


def autoencoder_counterparts(names: Collection[str]) -> dict[str, Counterpart]:
    """Our names in an autoencoder (`encoder.*`, `decoder.*`, `quant_conv.*` ...) -> tensors of diffusers' ones."""
    levels = 1 + max(_indices(names, r"(?:en|de)coder\.(?:down|up)\.(\d+)\."), default=0)

    def coder(name: str, block: Rules) -> list[tuple[str, str]]:
        rules = [
            *_nested(f"{name}.mid.block_1", f"{name}.mid_block.resnets.0", block),
            *_nested(f"{name}.mid.attn_1", f"{name}.mid_block.attentions.0", _ATTENTION),
            *_nested(f"{name}.mid.block_2", f"{name}.mid_block.resnets.1", block),
            (f"{name}.norm_out.", f"{name}.conv_norm_out."),
            (f"{name}.conv_out.time_mix_conv.", f"{name}.time_conv_out."),
            (f"{name}.conv_", f"{name}.conv_"),
        ]
        for i in range(levels):
            down, up = f"{name}.down_blocks.{i}", f"{name}.up_blocks.{levels - 1 - i}"
            rules += _nested(f"{name}.down.{i}.downsample.conv", f"{down}.downsamplers.0.conv")
            rules += _nested(f"{name}.up.{i}.upsample.conv", f"{up}.upsamplers.0.conv")
            for j in sorted(_indices(names, rf"{name}\.(?:down|up)\.{i}\.block\.(\d+)\.")):
                rules += _nested(f"{name}.down.{i}.block.{j}", f"{down}.resnets.{j}", block)
                rules += _nested(f"{name}.up.{i}.block.{j}", f"{up}.resnets.{j}", block)
        return rules

    rules = [
        *coder("encoder", _RESNET),
        *coder("decoder", _VIDEO_RESNET if is_temporal(names) else _RESNET),
        ("quant_conv.", "quant_conv."),
        ("post_quant_conv.", "post_quant_conv."),
    ]
    return {
        name: Counterpart((theirs,), "matrix" if re.search(r"attentions\.0\.to_.*weight$", theirs) else "same")
        for name, theirs in _renamed(names, rules)
    }


def tower_counterparts(names: Collection[str]) -> dict[str, Counterpart]:
    """Our names without open_clip's `visual.` -> tensors of transformers' CLIPVisionModelWithProjection."""
    rules = [
        ("class_embedding", "vision_model.embeddings.class_embedding"),
        ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("conv1.", "vision_model.embeddings.patch_embedding."),
        ("ln_pre.", "vision_model.pre_layrnorm."),
        ("ln_post.", "vision_model.post_layernorm."),
        ("proj", "visual_projection.weight"),
    ]
    for i in _indices(names, r"transformer\.resblocks\.(\d+)\."):
        rules += _nested(f"transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}", _TOWER_LAYER)
    counterparts = {}
    for name, theirs in _renamed(names, rules):
        if "{}" in theirs:
            counterparts[name] = Counterpart(tuple(theirs.format(letter) for letter in "qkv"), "stacked")
        else:
            counterparts[name] = Counterpart((theirs,), "transposed" if name == "proj" else "same")
    return counterparts


def is_temporal(names: Iterable[str]) -> bool:
    """Whether an autoencoder's decoder, under our names or theirs, is the video decoder."""
    return any("time_mix_conv" in name or "time_conv_out" in name for name in names)


def folder_counterparts(names: Collection[str]) -> tuple[dict[str, tuple[str, Counterpart]], dict[str, str | None]]:
    """Our names of a whole model -> (part, counterpart) in a diffusers folder; and our names that have none there.

    The latter map to another of our names, whose tensor is the same, or to None for tensors that inference does not
    use: rests of CLIP's text tower, and the decoder of the conditioner's autoencoder. Parts: unet, vae, image_encoder.
    Raises WeightsError for an unknown name.
    """
    encoder = _matched_prefix(names, r"conditioner\.embedders\.\d+\.encoder\.(?=encoder\.)")
    tower = _matched_prefix(names, r"conditioner\.embedders\.\d+\.open_clip\.model\.(?=visual\.)")
    counterparts: dict[str, tuple[str, Counterpart]] = {}

    def add(part: str, full_names: Mapping[str, str], of_part: Mapping[str, Counterpart]) -> None:
        counterparts.update({full_names[name]: (part, counterpart) for name, counterpart in of_part.items()})

    stripped = {name.removeprefix(UNET): name for name in names if name.startswith(UNET)}
    add("unet", stripped, unet_counterparts(stripped))
    stripped = {name.removeprefix(encoder): name for name in names if encoder and name.startswith(encoder)}
    stripped = {name: full for name, full in stripped.items() if name.startswith(("encoder.", "quant_conv."))}
    first = {name.removeprefix(FIRST_STAGE): name for name in names if name.startswith(FIRST_STAGE)}
    stripped |= {name: full for name, full in first.items() if name.startswith(("decoder.", "post_quant_conv."))}
    add("vae", stripped, autoencoder_counterparts(stripped))
    visual = f"{tower}visual."
    stripped = {name.removeprefix(visual): name for name in names if tower and name.startswith(visual)}
    add("image_encoder", stripped, tower_counterparts(stripped))

    unmapped: dict[str, str | None] = {}
    for name in names:
        if name in counterparts:
            continue
        substitute = f"{encoder}{name.removeprefix(FIRST_STAGE)}" if name.startswith(FIRST_STAGE) else None
        if substitute in counterparts:
            unmapped[name] = substitute
        elif (tower and name.startswith(tower)) or (encoder and name.startswith(encoder)):
            unmapped[name] = None
        else:
            raise _nameless(name)
    return counterparts, unmapped


def _nested(ours: str, theirs: str, rules: Rules = (("", ""),)) -> list[tuple[str, str]]:
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in rules]


def _renamed(names: Iterable[str], rules: Rules) -> Iterator[tuple[str, str]]:
    """Each name, and its new name by the first rule whose prefix matches."""
    rules = list(rules)
    for name in names:
        ours, theirs = next((rule for rule in rules if name.startswith(rule[0])), (None, ""))
        if ours is None:
            raise _nameless(name)
        yield name, theirs + name.removeprefix(ours)


def _nameless(name: str) -> WeightsError:
    return WeightsError(f"diffusers has no place for {name}: models of this YAML are no diffusers folders.")


def _indices(names: Iterable[str], pattern: str) -> set[int]:
    return {int(match.group(1)) for name in names if (match := re.match(pattern, name))}


def _matched_prefix(names: Iterable[str], pattern: str) -> str | None:
    return next((match.group(0) for name in names if (match := re.match(pattern, name))), None)
