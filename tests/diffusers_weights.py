"""Weights under the official names, which are ours, as diffusers' and transformers' modules want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sgm.formats.diffusers import Counterpart, autoencoder_counterparts, tower_counterparts, unet_counterparts

State = Mapping[str, Tensor]


def renamed(state: State, counterparts: Mapping[str, Counterpart]) -> dict[str, Tensor]:
    """The tensors under their names, in their shapes."""
    pairs = ((counterparts[key].names, counterparts[key].theirs(value)) for key, value in state.items())
    return {name: value.contiguous() for names, values in pairs for name, value in zip(names, values, strict=True)}


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
    return filled(network, renamed(state, unet_counterparts(state)))


def down_blocks(channels: Sequence[int]) -> dict[str, Any]:
    """AutoencoderKLTemporalDecoder's arguments for one block a level, which diffusers annotates as tuples of one."""
    return {"down_block_types": ("DownEncoderBlock2D",) * len(channels), "block_out_channels": tuple(channels)}


def autoencoder(ddconfig: Mapping[str, Any], encoder: State, decoder: State) -> AutoencoderKLTemporalDecoder:
    """diffusers' autoencoder. ddconfig: the YAML's; encoder: an encoder's state (`encoder.*` and, if it has one,
    `quant_conv.*`); decoder: the state of a VideoDecoder."""
    z, channels = ddconfig["z_channels"], [mult * ddconfig["ch"] for mult in ddconfig["ch_mult"]]
    with torch.device("meta"):
        model = AutoencoderKLTemporalDecoder(
            **down_blocks(channels), layers_per_block=ddconfig["num_res_blocks"], latent_channels=z
        )
        # diffusers leaves the middle's attention out of decoders of one block a level; the official ones have it.
        model.decoder.mid_block = MidBlockTemporalDecoder(channels[-1], channels[-1], channels[-1], num_layers=2)

    both = {**encoder, **{f"decoder.{key}": value for key, value in decoder.items()}}
    state = renamed(both, autoencoder_counterparts(both))
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
    # Some versions of transformers put everything one level deeper in memory, though not on disk.
    deep = any(key.startswith("vision_model.") for key in model.state_dict())
    theirs = renamed(state, tower_counterparts(state))
    return filled(model, theirs if deep else {key.removeprefix("vision_model."): v for key, v in theirs.items()})
