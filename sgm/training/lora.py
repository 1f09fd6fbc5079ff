"""Training of a LoRA: small matrices beside layers of the frozen network (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgm.engine import DiffusionEngine
from sgm.errors import UserError
from sgm.formats.files import write_tensors
from sgm.layers.residual import TemporalConv
from sgm.training.schema import LORA_TARGETS
from sgm.training.video import VideoTask
from sgm.weights import quick_hash

# Attention to a single token is its value, whatever query and key are (see `CrossAttention`): they are left out.
_ATTENTION = re.compile(r"attn1\.to_(?:q|k|v|out\.0)$|attn2\.to_(?:v|out\.0)$")
Chosen = Callable[[str, nn.Module], bool]
_CHOOSE: tuple[Chosen, ...] = (
    lambda name, layer: bool(_ATTENTION.search(name)) and ".time_stack." in name,
    lambda name, layer: bool(_ATTENTION.search(name)),
    lambda name, layer: isinstance(layer, TemporalConv),
    lambda name, layer: isinstance(layer, nn.Conv2d | TemporalConv),
)
TARGETS = dict(zip(LORA_TARGETS, _CHOOSE, strict=True))


class Adapter(nn.Module):
    """alpha / rank · up(down(dropout(x))), which is added to a layer's output; 0 at first.

    x: as the layer takes it. down: like the layer, but with `rank` outputs; up: a linear layer or 1x1 convolution.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)
        if isinstance(layer, nn.Linear):
            self.down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, False)
        elif isinstance(layer, TemporalConv):
            self.down = TemporalConv(layer.in_channels, rank, layer.kernel_size)
            self.down.bias, up = None, nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            assert isinstance(layer, nn.Conv2d)
            shape: Any = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(up.weight)
        self.up = up

    def added_to(self, weight: Tensor) -> Tensor:
        """The layer's weight with what the adapter adds to it, in the weight's dtype."""
        delta = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return (weight.float() + self.scale * delta.view(weight.shape)).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.down(self.dropout(x)))


def attach(network: nn.Module, targets: tuple[str, ...], rank: int, alpha: float, dropout: float) -> dict[str, Adapter]:
    """Add an adapter to each targeted layer of a network. -> layer's name -> its adapter. Raises UserError for none."""
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | TemporalConv)
        and any(choose(name, layer) for target, choose in TARGETS.items() if target in targets)
    }
    if not layers:
        raise UserError(f"This network has no layers of the targets {', '.join(targets)}: choose others.")
    adapters = {name: Adapter(layer, rank, alpha, dropout) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.add_module("lora", adapter := adapters[name])
        layer.register_forward_hook(lambda _, inputs, output, adapter=adapter: output + adapter(inputs[0]))
    return adapters


class LoraTask(VideoTask):
    """As `VideoTask`, with adapters trained and the network itself left as it is.

    train: also "rank", "alpha", "dropout", "targets" (names of TARGETS), "trigger" (what to choose it for, or None).
    """

    def __init__(self, engine: DiffusionEngine, data: Mapping[str, Any], train: Mapping[str, Any]) -> None:
        self.adapters = attach(
            engine.model.diffusion_model, train["targets"], train["rank"], train["alpha"], train["dropout"]
        )
        super().__init__(engine, data, train)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    @torch.no_grad()
    def copied(self) -> DiffusionEngine:
        """As of the base class, with the adapters merged into the copy's weights."""
        engine = super().copied()
        for name, adapter in self.adapters.items():
            layer: Any = engine.model.diffusion_model.get_submodule(name)
            layer.weight = nn.Parameter(adapter.added_to(layer.weight), requires_grad=False)
            del layer._modules["lora"]
            layer._forward_hooks = OrderedDict()  # of the copy; the original's stay
        return engine

    def result(self, out: Path, model: Path) -> Path:
        return out / f"{out.absolute().name}.safetensors"

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write the LoRA in float16, with what it is in the file's metadata."""
        tensors: dict[str, Tensor] = {}
        for name, adapter in self.adapters.items():
            layer = f"diffusion_model.{name}"
            tensors |= {f"{layer}.lora_{part}.weight": getattr(adapter, part).weight for part in ("down", "up")}
            tensors[f"{layer}.alpha"] = torch.tensor(float(self.train_config["alpha"]))
        tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in tensors.items()}
        train = self.train_config
        metadata = {
            "modelspec.title": config["out"].absolute().name,
            "modelspec.trigger_phrase": train["trigger"] or "",
            "sgm.base": Path(config["model"]).stem,
            "sgm.base_sha256": quick_hash(config["init"])["sha256"],
            "sgm.targets": ", ".join(train["targets"]),
            "sgm.rank": str(train["rank"]),
            "sgm.alpha": f"{train['alpha']:g}",
            "sgm.dropout": f"{train['dropout']:g}",
            "sgm.steps": str(self.global_step),
            "sgm.data": _hash_of(*(self.data[name] for name in ("pictures", "clips") if self.data[name])),
        }
        layout = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
        write_tensors(path, layout, tensors.__getitem__, metadata=metadata)


def _hash_of(*places: Path) -> str:
    """SHA-256 of all files of folders, or of a file: of their names and their quick hashes."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(path for path in [place, *place.rglob("*")] if path.is_file()):
            digest.update(f"{path.relative_to(place).as_posix()}:{quick_hash(path)['sha256']}\n".encode())
    return digest.hexdigest()
