"""A model of Stable Video Diffusion's kind, small, whole and with made-up weights, for tests of what is on disk."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from sgm.config import instantiate_from_config, load_config
from sgm.engine import DiffusionEngine, build_engine
from sgm.versions import VERSIONS, VIEW_VERSIONS, Version
from tests.test_layouts import LAYOUTS, read_layout
from tests.test_parity import OWN, golden_weights

ARCH = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 56},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 2, "layers": 1},
}


def write_config(path: Path, case: str = "svd_small", channels: int = 32) -> Path:
    """The golden case's YAML, smaller, and with what diffusers' own modules insist on: two blocks a level."""
    model = load_config(OWN / f"{case}.yaml")["model"]
    params = model["params"]
    params["network_config"]["params"] |= {"model_channels": channels, "channel_mult": [1, 2], "context_dim": 64}
    coder = {"ch_mult": [1, 2, 2], "num_res_blocks": 2, "ch": 32}
    first = params["first_stage_config"]["params"]
    for part in ("encoder_config", "decoder_config"):
        if "params" in first.get(part, {}):
            first[part]["params"] |= coder
    if "ddconfig" in first:
        first["ddconfig"] |= coder
    for embedder in params["conditioner_config"]["params"]["emb_models"]:
        if "open_clip_embedding_config" in embedder["params"]:
            embedder["params"]["open_clip_embedding_config"]["params"]["arch"] = ARCH
        if "encoder_config" in embedder["params"]:
            embedder["params"]["encoder_config"]["params"]["ddconfig"] |= coder
    OmegaConf.save(OmegaConf.create({"model": model}), path)
    return path


def made_up(config: Path) -> DiffusionEngine:
    """The engine of a YAML; its weights are a function of their names."""
    engine = instantiate_from_config(load_config(config)["model"]).eval().requires_grad_(False)
    return golden_weights(OWN).fill(engine).freeze()


def put_small(name: str, case: str, folder: Path, **changes: Any) -> Path:
    """Put a small model of a golden case's kind in a version's place. Returns its YAML, in `folder`."""
    config, table = write_config(folder / f"{name}.yaml", case), VIEW_VERSIONS if name in VIEW_VERSIONS else VERSIONS

    class Small(Version):
        config_path = property(lambda self: config)

    table[name] = Small(**{field.name: getattr(table[name], field.name) for field in fields(Version)} | changes)
    return config


def state_of(engine: DiffusionEngine) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in engine.state_dict().items()}


def write_empty(path: Path, shapes: dict[str, tuple[int, ...]], kind: str = "F16") -> Path:
    """A .safetensors file of zeros that take no room on the disk."""
    size, end, header = {"F16": 2, "F32": 4}[kind], 0, {}
    for name, shape in shapes.items():
        begin, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def official_layout(name: str) -> dict[str, tuple[int, ...]]:
    return read_layout(LAYOUTS / f"{name}.txt")


def shapes_of(config: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in build_engine(config).state_dict().items()}
