"""Weights under the official names, which are ours, as diffusers' and transformers' modules want them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

State = Mapping[str, Tensor]
Rules = Iterable[tuple[str, str]]  # (start of our name, start of theirs)

RESIDUAL = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
]
VIDEO_RESIDUAL = [
    *((f"time_stack.{ours}", f"temporal_res_block.{theirs}") for ours, theirs in RESIDUAL),
    ("time_mixer.", "time_mixer."),
    ("mix_factor", "time_mixer.mix_factor"),
    *((ours, f"spatial_res_block.{theirs}") for ours, theirs in RESIDUAL),
]
TRANSFORMER = [
    ("time_stack.", "temporal_transformer_blocks."),
    ("time_pos_embed.0.", "time_pos_embed.linear_1."),
    ("time_pos_embed.2.", "time_pos_embed.linear_2."),
    ("", ""),  # the rest is called alike
]
RESNET = [("nin_shortcut.", "conv_shortcut."), ("", "")]
VIDEO_RESNET = [*VIDEO_RESIDUAL, *((ours, f"spatial_res_block.{theirs}") for ours, theirs in RESNET)]
ATTENTION = [("norm.", "group_norm."), ("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0.")]


def under(ours: str, theirs: str, rules: Rules = (("", ""),)) -> list[tuple[str, str]]:
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in rules]


def renamed(state: State, rules: Rules) -> dict[str, Tensor]:
    """Each name by the first rule that fits it."""
    rules = list(rules)
    result = {}
    for key, value in state.items():
        ours, theirs = next((rule for rule in rules if key.startswith(rule[0])), (None, ""))
        if ours is None:
            raise KeyError(f"No rule says what diffusers calls {key}.")
        result[theirs + key.removeprefix(ours)] = value
    return result


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """What is called `prefix.*`, without the prefix."""
    return {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}


def filled(module: nn.Module, state: State) -> Any:
    """The module, built on the `meta` device, with its weights in float32."""
    module.load_state_dict({key: value.float() for key, value in state.items()}, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def unet(params: Mapping[str, Any], state: State, frames: int) -> UNetSpatioTemporalConditionModel:
    """diffusers' network. params: a YAML's `network_config.params`; state: what stands at `model.diffusion_model`."""
    mults, blocks = list(params["channel_mult"]), params["num_res_blocks"]
    channels = [mult * params["model_channels"] for mult in mults]
    attends = [2**i in params["attention_resolutions"] for i in range(len(mults))]
    with torch.device("meta"):
        network = UNetSpatioTemporalConditionModel(
            in_channels=params["in_channels"],
            out_channels=params["out_channels"],
            down_block_types=tuple(
                "CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in attends
            ),
            up_block_types=tuple(
                "CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in attends[::-1]
            ),
            block_out_channels=tuple(channels),
            addition_time_embed_dim=params["adm_in_channels"] // 3,
            projection_class_embeddings_input_dim=params["adm_in_channels"],
            layers_per_block=blocks,
            cross_attention_dim=params["context_dim"],
            num_attention_heads=tuple(width // params["num_head_channels"] for width in channels),
            num_frames=frames,
        )
    rules = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        *under("middle_block.0", "mid_block.resnets.0", VIDEO_RESIDUAL),
        *under("middle_block.1", "mid_block.attentions.0", TRANSFORMER),
        *under("middle_block.2", "mid_block.resnets.1", VIDEO_RESIDUAL),
    ]
    for i in range(len(attends)):
        first = 1 + i * (blocks + 1)  # of the level, in input_blocks
        rules += under(f"input_blocks.{first + blocks}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
        for j in range(blocks):
            rules += under(f"input_blocks.{first + j}.0", f"down_blocks.{i}.resnets.{j}", VIDEO_RESIDUAL)
            rules += under(f"input_blocks.{first + j}.1", f"down_blocks.{i}.attentions.{j}", TRANSFORMER)
    for i, attention in enumerate(attends[::-1]):
        first = i * (blocks + 1)
        up = f"output_blocks.{first + blocks}.{2 if attention else 1}.conv"
        rules += under(up, f"up_blocks.{i}.upsamplers.0.conv")
        for j in range(blocks + 1):
            rules += under(f"output_blocks.{first + j}.0", f"up_blocks.{i}.resnets.{j}", VIDEO_RESIDUAL)
            rules += under(f"output_blocks.{first + j}.1", f"up_blocks.{i}.attentions.{j}", TRANSFORMER)
    return filled(network, renamed(state, rules))


def autoencoder(ddconfig: Mapping[str, Any], encoder: State, decoder: State) -> AutoencoderKLTemporalDecoder:
    """diffusers' autoencoder. ddconfig: the YAML's; encoder: an encoder's state (`encoder.*` and, if it has one,
    `quant_conv.*`); decoder: the state of a VideoDecoder."""
    levels, z = len(ddconfig["ch_mult"]), ddconfig["z_channels"]
    channels = [mult * ddconfig["ch"] for mult in ddconfig["ch_mult"]]
    with torch.device("meta"):
        model = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=ddconfig["num_res_blocks"],
            latent_channels=z,
        )
        # diffusers leaves the middle's attention out of decoders of one block a level; the official ones have it.
        model.decoder.mid_block = MidBlockTemporalDecoder(channels[-1], channels[-1], channels[-1], num_layers=2)

    def coder(name: str, blocks: Rules, middle: Rules) -> list[tuple[str, str]]:
        rules = [
            *under(f"{name}.mid.block_1", f"{name}.mid_block.resnets.0", middle),
            *under(f"{name}.mid.attn_1", f"{name}.mid_block.attentions.0", ATTENTION),
            *under(f"{name}.mid.block_2", f"{name}.mid_block.resnets.1", middle),
            (f"{name}.norm_out.", f"{name}.conv_norm_out."),
            (f"{name}.conv_out.time_mix_conv.", f"{name}.time_conv_out."),
            (f"{name}.conv_", f"{name}.conv_"),
        ]
        for i in range(levels):
            down, up = f"{name}.down_blocks.{i}", f"{name}.up_blocks.{levels - 1 - i}"
            rules += under(f"{name}.down.{i}.downsample.conv", f"{down}.downsamplers.0.conv")
            rules += under(f"{name}.up.{i}.upsample.conv", f"{up}.upsamplers.0.conv")
            for j in range(ddconfig["num_res_blocks"] + 1):
                rules += under(f"{name}.down.{i}.block.{j}", f"{down}.resnets.{j}", blocks)
                rules += under(f"{name}.up.{i}.block.{j}", f"{up}.resnets.{j}", blocks)
        return rules

    both = {**encoder, **{f"decoder.{key}": value for key, value in decoder.items()}}
    rules = [
        *coder("encoder", RESNET, RESNET),
        *coder("decoder", VIDEO_RESNET, VIDEO_RESNET),
        ("quant_conv.", "quant_conv."),
    ]
    state = renamed(both, rules)
    for key, value in state.items():
        if re.search(r"attentions\.0\.to_.*weight$", key):
            state[key] = value[:, :, 0, 0]  # linear layers there, 1x1 convolutions here
    state.setdefault("quant_conv.weight", torch.eye(2 * z)[:, :, None, None])
    state.setdefault("quant_conv.bias", torch.zeros(2 * z))
    return filled(model, state)


def image_tower(arch: Mapping[str, Any], state: State) -> CLIPVisionModelWithProjection:
    """transformers' CLIP. arch: as in `FrozenOpenCLIPImageEmbedder`; state: what stands under its `model.visual`."""
    vision = arch["vision_cfg"]
    width = vision["width"]
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=arch["embed_dim"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=width // vision["head_width"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act="gelu",
        )
    )
    # Some versions of transformers put everything one level deeper.
    top = next(key for key in model.state_dict() if key.endswith("class_embedding")).removesuffix(
        "embeddings.class_embedding"
    )
    rules = [
        ("class_embedding", f"{top}embeddings.class_embedding"),
        ("positional_embedding", f"{top}embeddings.position_embedding.weight"),
        ("conv1.", f"{top}embeddings.patch_embedding."),
        ("ln_pre.", f"{top}pre_layrnorm."),
        ("ln_post.", f"{top}post_layernorm."),
        ("proj", "visual_projection.weight"),
    ]
    layer = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        *((f"attn.{name}.", f"self_attn.{name}.") for name in ("q_proj", "k_proj", "v_proj")),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ]
    for i in range(vision["layers"]):
        rules += under(f"transformer.resblocks.{i}", f"{top}encoder.layers.{i}", layer)
    split = {}
    for key, value in state.items():
        if "attn.in_proj_" in key:
            for name, third in zip("qkv", value.chunk(3), strict=True):
                split[key.replace("in_proj_", f"{name}_proj.")] = third
        else:
            split[key] = value.T if key == "proj" else value
    return filled(model, renamed(split, rules))
