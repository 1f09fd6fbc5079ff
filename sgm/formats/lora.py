"""LoRA files: pairs of small matrices whose products are added to a network's weights (arXiv:2106.09685).

Names of kohya's programs, of peft and diffusers, and our own; of linear layers and convolutions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sgm.errors import printable
from sgm.formats.diffusers import UNET, unet_counterparts
from sgm.formats.files import Shape, TensorFile, WeightsError, open_tensors
from sgm.formats.tensor_file import is_finite, reading
from sgm.paths import is_file, is_folder

Shapes = Mapping[str, Shape]

_LONGEST_NAME = 1000  # characters
_LARGEST_CONFIG = 1 << 20  # bytes
_FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora(?:_(?P<old>down|up)|_(?P<peft>[AB])|(?:_linear_layer)?\.(?P<diffusers>down|up))"
    r"(?:\.\w+)?\.weight"
)
_PREFIX = re.compile(r"^(?:base_model_model_|lora_unet_|unet_|model_diffusion_model_|diffusion_model_)+")
_OTHER_FORM = re.compile(r"hada_|lokr_|dora_scale|lora_magnitude_vector|lora_mid\.|\.oft_|\.boft_")
_TEXT = re.compile(r"^(?:lora_te\d?_|text_encoder|te\d?_)|text_model")
# What programs write into metadata of a network, in lower case, and what it is called.
_BASES = (
    ("xl", "Stable Diffusion XL"),
    ("sd_v1", "Stable Diffusion 1.x"),
    ("diffusion-v1", "Stable Diffusion 1.x"),
    ("sd_v2", "Stable Diffusion 2.x"),
    ("diffusion-v2", "Stable Diffusion 2.x"),
)
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x or Video Diffusion", 2048: "Stable Diffusion XL"}
_VIDEO = ("stable-video", "svd", "sv3d", "sv4d")


class Pair(NamedTuple):
    """The tensors of a layer in a file: the names of both matrices, and of alpha, or its value, None for the rank."""

    down: str
    up: str
    alpha: str | float | None


@dataclass
class LoraFile:
    """An open LoRA, which fits a network. Use as a context manager.

    pairs: our weights' names -> what is added to them. unfit: names in the file for which the network has no place.
    metadata: what the file says of itself.
    """

    path: Path
    file: TensorFile
    shapes: Shapes
    metadata: dict[str, str]
    pairs: dict[str, Pair] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)
    root_scaled: bool = False  # alpha is over the rank's square root (rsLoRA, arXiv:2312.03732)

    def __enter__(self) -> LoraFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add_to(self, total: Tensor, name: str, strength: float) -> None:
        """Add strength · alpha / rank · up @ down to our weight, float32, in place. Raises WeightsError for NaN."""
        pair = self.pairs[name]
        down, up = (self.file.read(part).to(total.device).float() for part in (pair.down, pair.up))
        if not (is_finite(down) and is_finite(up)):
            raise WeightsError(f"{self.path}: {printable(pair.up)} or its partner holds NaN or infinity: get it again.")
        rank = down.shape[0]
        alpha = pair.alpha if not isinstance(pair.alpha, str) else float(self.file.read(pair.alpha).reshape(()))
        scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.root_scaled else rank)
        down = down.reshape(rank, *total.shape[1:])
        if (last := total.movedim(1, -1)).is_contiguous():  # channels last
            total, down = last, down.movedim(1, -1)
        total.view(len(total), -1).addmm_(up.flatten(1), down.flatten(1), alpha=strength * scale)


def open_lora(path: Path, expected: Shapes, model: str) -> LoraFile:
    """Open a LoRA for the network among a model's weights: `expected`, names and shapes. Reads headers only.

    model: the model's name, for messages. Raises WeightsError for a file that cannot be read, is no LoRA, is one of
    another network, or fits nowhere.
    """
    path, config = _with_config(path)
    file = open_tensors(path)
    try:
        with reading(path):
            shapes = {name: expected[name] for name in expected if name.startswith(UNET)}
            config = {**config, **_stored_config(file.metadata)}
            lora = LoraFile(path, file, shapes, file.metadata, root_scaled=bool(config.get("use_rslora")))
            _match(lora, config)
            said = f"; it says that it is for {base_of(file.metadata)}" if base_of(file.metadata) else ""
            if other := _other_network(lora):
                raise WeightsError(f"{path} is {other}, which does not fit {model}{said}.")
            if not lora.pairs:
                held = _listed(lora.unfit)
                raise WeightsError(f"{path} is a LoRA that fits no layer of {model}{said}. It holds {held}.")
        return lora
    except BaseException:
        file.close()
        raise


def base_of(metadata: Mapping[str, str]) -> str:
    """The model that a LoRA was trained on, by what it says of itself; "" where it does not."""
    names = ("sgm.base", "ss_sd_model_name", "modelspec.architecture", "ss_base_model_version")
    return next((printable(metadata[name], 80) for name in names if metadata.get(name)), "")


def factors(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Layers, as the file names them -> "down", "up" and "alpha" -> the tensor's name."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        if len(name) > _LONGEST_NAME:
            continue
        if name.endswith(".alpha"):
            layers.setdefault(name.removesuffix(".alpha"), {})["alpha"] = name
        elif match := _FACTOR.fullmatch(name):
            role = match["old"] or match["diffusers"] or {"A": "down", "B": "up"}[match["peft"]]
            layers.setdefault(match["layer"], {})[role] = name
    return layers


def _match(lora: LoraFile, config: Mapping[str, Any]) -> None:
    """Find the place of each layer of a file. config: peft's, {} where there is none."""
    layout, layers = lora.file.layout, factors(lora.file.layout)
    if not any({"down", "up"} <= parts.keys() for parts in layers.values()):
        if any(map(_OTHER_FORM.search, layout)):
            raise WeightsError(f"{lora.path} is a LoHa, LoKr, DoRA or OFT; of adapters, plain LoRAs alone are known.")
        raise WeightsError(f"{lora.path} is no LoRA: it holds {_listed(list(layout))}.")
    if any(map(_OTHER_FORM.search, layout)):
        raise WeightsError(f"{lora.path} is partly no plain LoRA ({_listed([*filter(_OTHER_FORM.search, layout)])}).")
    places, used = _places(lora.shapes), set[str]()
    for layer, parts in layers.items():
        name = places.get(_flat(layer))
        if name is None or not {"down", "up"} <= parts.keys() or name in lora.pairs:
            continue
        down, up = layout[parts["down"]], layout[parts["up"]]
        alpha = layout.get(parts.get("alpha", ""))
        if not _fits(down[1], up[1], lora.shapes[name]) or not (down[0].is_floating_point and up[0].is_floating_point):
            continue
        if alpha is not None and (math.prod(alpha[1]) != 1 or alpha[0].is_complex):
            continue
        lora.pairs[name] = Pair(parts["down"], parts["up"], parts.get("alpha", _alpha(layer, config)))
        used.update(parts.values())
    lora.unfit = [name for name in layout if name not in used]


def _places(shapes: Shapes) -> dict[str, str]:
    """Names of layers, ours and diffusers', with underscores for dots -> our weights' full names."""
    short = {name.removeprefix(UNET): name for name in shapes}
    layers = {name: full for name, full in short.items() if name.endswith(".weight") and len(shapes[full]) > 1}
    places = {_flat(name.removesuffix(".weight")): full for name, full in layers.items()}
    with suppress(KeyError, WeightsError):  # a network that diffusers does not have
        for name, counterpart in unet_counterparts(short).items():
            if name in layers:
                places.setdefault(_flat(counterpart.names[0].removesuffix(".weight")), layers[name])
    return places


def _flat(layer: str) -> str:
    """A layer's name without prefixes, with underscores for dots; attention's `processor` of older files taken out."""
    flat = _PREFIX.sub("", layer.replace(".", "_")).replace("_processor_to_", "_to_")
    return f"{flat}_0" if flat.endswith("_to_out") else flat


def _fits(down: Shape, up: Shape, weight: Shape) -> bool:
    """Whether up @ down has a weight's shape: down (rank, in, *kernel), up (out, rank, 1, ...)."""
    if len(down) < 2 or len(up) < 2 or not down[0]:
        return False
    return _core((weight[0], *down[1:])) == _core(weight) and _core(up) == _core((weight[0], down[0]))


def _core(shape: Shape) -> Shape:
    """A shape without the ones at its end: a linear layer is a convolution with a kernel of 1."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _other_network(lora: LoraFile) -> str:
    """What network a LoRA is of, if it is told that this is another one; else ""."""
    names, metadata = list(lora.file.layout), lora.metadata
    if any("motion_modules" in name for name in names):
        return "a LoRA of a motion module (AnimateDiff)"
    said = " ".join(metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    if not any(video in said for video in _VIDEO):
        for mark, title in _BASES:
            if mark in said:
                return f"a LoRA of {title}"
    if any(map(_TEXT.search, names)):
        return "a LoRA of a model that is told what to draw by text"
    known = {
        shape[1] for name, shape in lora.shapes.items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    for layer, parts in factors(lora.file.layout).items():
        shape = lora.file.layout[parts["down"]][1] if "down" in parts else ()
        if re.search(r"attn2_to_[kv]$", _flat(layer)) and len(shape) > 1 and shape[1] not in known:
            other = _WIDTHS.get(shape[1])
            return f"a LoRA of {other}" if other else f"a LoRA of another network (its condition has {shape[1]} values)"
    return ""


def _with_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a LoRA, and peft's configuration beside it, {} for none. path: that file, or peft's folder."""
    if is_folder(path):
        files = [path / f"adapter_model{suffix}" for suffix in (".safetensors", ".bin")]
        path = next((file for file in files if is_file(file)), files[0])
    config = path.with_name("adapter_config.json")
    if not path.name.startswith("adapter_model.") or not is_file(config):
        return path, {}
    with reading(config, " as peft's configuration"):
        with config.open("rb") as file:
            content = json.loads(file.read(_LARGEST_CONFIG))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    return path, content


def _stored_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's configuration, as diffusers writes it into a file's metadata."""
    with suppress(ValueError, RecursionError):
        content = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        if isinstance(content, dict):
            return {str(key).removeprefix("unet."): value for key, value in content.items()}
    return {}


def _alpha(layer: str, config: Mapping[str, Any]) -> float | None:
    """A layer's alpha by peft's configuration; None where it says none."""
    patterns = config.get("alpha_pattern")
    flat = _flat(layer)
    for pattern, alpha in patterns.items() if isinstance(patterns, dict) else ():
        if f"_{flat}".endswith(f"_{_flat(str(pattern))}"):
            return float(alpha)
    alpha = config.get("lora_alpha")
    return None if alpha is None else float(alpha)


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name, 120) for name in names[:3]) + (" …" if len(names) > 3 else "")
