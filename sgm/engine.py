"""DiffusionEngine: the modules of one model, and how to load their weights."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from sgm.config import ConfigError, instantiate_from_config, load_config
from sgm.devices import RESERVE, choose_device, free_memory
from sgm.diffusion.denoiser import Denoiser
from sgm.errors import UserError, enough_memory
from sgm.fast.decoder import MAX_VALUES, decode, frame_values
from sgm.fast.ops import channels_last, compile_ahead
from sgm.fast.shard import Ranks, Shard
from sgm.fast.unet import FastUNet
from sgm.loras import loras_of, open_loras
from sgm.paths import user_path
from sgm.ranks import start_ranks
from sgm.unet.wrapper import OpenAIWrapper
from sgm.versions import ALL_VERSIONS
from sgm.weights import WeightsError, load_weights, open_weights, quick_hash, shapes_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MOST_PARTS, _MOST_VALUES = 20_000, 10**11  # of a model that is built: modules and tensors; numbers in them


class DiffusionEngine(nn.Module):
    """Network, denoiser, conditioner and first stage (autoencoder) of a model, shared by any number of threads.

    Parameters are named as in the official YAMLs; `sampler_config` describes the YAML's own sampler and is not used
    here. `freeze` ends the loading; from then on no value changes. The state of a job is in its `sgm.run.Run`.
    """

    def __init__(
        self,
        network_config: Mapping[str, Any],
        denoiser_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        conditioner_config: Mapping[str, Any],
        sampler_config: Mapping[str, Any] | None = None,
        scale_factor: float = 1.0,
        ckpt_path: str | None = None,
        **unused: Any,  # settings of the original's training and autocast
    ) -> None:
        super().__init__()
        self.model = OpenAIWrapper(instantiate_from_config(network_config))
        self.denoiser: Denoiser = instantiate_from_config(denoiser_config)
        self.conditioner = instantiate_from_config(conditioner_config)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.sampler_config = sampler_config
        self.scale_factor = float(scale_factor)
        if not math.isfinite(self.scale_factor) or self.scale_factor <= 0:
            raise ValueError(f"scale_factor must be a number above 0; got {scale_factor}.")
        self.version = ""
        self.weights: dict[str, Any] = {}  # name and hash of the checkpoint and of its base, for recipes
        self.latent_channels: int = self.first_stage_model.decoder.z_channels
        self.factor: int = 2 ** (len(self.first_stage_model.decoder.up) - 1)  # downsampling factor, pixels to latents
        self._network: FastUNet | None = None
        self.device = torch.device("cpu")  # the device that computes; weights may be offloaded, see `move_weights`
        self.ranks = Ranks()  # the processes that compute with this one
        self.loras: Mapping[str, Path] = {}  # where LoRAs lie that are not looked for in their folders, by name
        self._weights_lock = threading.Lock()

    def freeze(self, device: torch.device | None = None) -> DiffusionEngine:
        """Prepare the loaded weights for inference: no gradients, channels-last memory format. Returns the engine.

        device: that which will compute, where the weights are offloaded (default: the weights').
        """
        self.eval().requires_grad_(False)
        channels_last(self)
        self._network = FastUNet(self.model)
        self.device = device or next(self.model.parameters()).device
        return self

    @property
    def network(self) -> FastUNet:
        """The network for inference. Raises ValueError while the engine is not frozen."""
        if self._network is None:
            raise ValueError("The engine is not frozen yet: call its freeze() once the weights are loaded.")
        return self._network

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules with weights by name, in the order in which a job uses them."""
        return {"conditioner": self.conditioner, "network": self.model, "autoencoder": self.first_stage_model}

    def move_weights(self, device: torch.device) -> None:
        """Offload the weights to the processor's memory, or move them back: the same values, in new tensors.

        For GPUs with too little memory. A job that is using the old tensors goes on with them; their memory is freed
        when no job uses them any more.
        """
        with self._weights_lock:
            if next(self.model.parameters()).device == device:
                return
            self.conditioner = copy_to(self.conditioner, device)
            self.first_stage_model = copy_to(self.first_stage_model, device)
            self.model = cast(OpenAIWrapper, copy_to(self.model, device))
            self._network = FastUNet(self.model)

    def denoise(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], **inputs: Any) -> Tensor:
        """Estimate the clean latents of x: (b t, c, h, w), sigma: (b t,)."""
        return self.denoiser(self._network or self.model, x, sigma, cond, **inputs)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) in [-1, 1] -> scaled latents (n, c, h / f, w / f).

        By the first stage's encoder or, where that has none, the conditioner's.
        """
        encoder = self.first_stage_model
        if not encoder.can_encode:
            encoder = next(e.encoder for e in self.conditioner.embedders if hasattr(e, "encoder"))
        return encoder.encode(pictures) * self.scale_factor

    def decode(self, z: Tensor, timesteps: int) -> Tensor:
        """Scaled latents (b t, c, h, w) -> frames (b t, 3, f h, f w), about [-1, 1]. timesteps: t, frames a clip.

        As in the original, the temporal decoder sees the `timesteps` frames of a clip and no others.
        """
        return self.first_stage_model.decode(self._unscaled(z), timesteps).float()

    def decode_clip(
        self,
        z: Tensor,
        frames_at_once: int | None = None,
        on_block: Callable[[int, int], None] = lambda done, of: None,
        first_stage: nn.Module | None = None,
        check: Callable[[], None] = lambda: None,
        shard: Shard | None = None,
        max_held: int | None = None,
    ) -> Tensor:
        """Scaled latents (t, c, h, w) of a whole clip -> frames (t, 3, f h, f w), in bounded memory.

        The temporal decoder sees all frames: see `sgm.fast.decoder`, also for on_block, check, shard and max_held.
        frames_at_once: how many frames are decoded at once (default: enough to keep the device busy). first_stage: a
        copy of `first_stage_model` on z's device, where the weights are offloaded.
        """
        model: Any = first_stage or self.first_stage_model
        z = model.to_decoder(self._unscaled(z, model))
        limit = MAX_VALUES if frames_at_once is None else frames_at_once * frame_values(model.decoder, *z.shape[-2:])
        return decode(model.decoder, z, min(limit, MAX_VALUES), on_block, check, shard, max_held).float()

    def _unscaled(self, z: Tensor, first_stage: nn.Module | None = None) -> Tensor:
        dtype = next((first_stage or self.first_stage_model).parameters()).dtype
        return (z / self.scale_factor).to(dtype).to(memory_format=torch.channels_last)


@enough_memory()
def load_engine(
    version: str = "svd_tiny",
    *,
    checkpoint: str | Path | None = None,
    base: str | Path | None = None,
    loras: Mapping[str, Path] | None = None,
    on_progress: Callable[[float], None] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    gpus: int = 1,
    unfilled: DiffusionEngine | None = None,
    low_memory: bool = False,
) -> DiffusionEngine:
    """Build a model version from its YAML and load its weights.

    checkpoint: the weights, a file or a diffusers folder (default: the version's own, see `sgm.versions`); parts that
    they lack come from `base` (default: the version's). loras: files of LoRAs that requests name and that are not in
    the folders `loras`. on_progress(share) is called with the share of the weights that is loaded, 0 to 1. device:
    "cuda", "mps", "cpu" ... (default: the fastest available). dtype: "float32", "float16", "bfloat16" (default: see
    `default_dtype`). gpus: how many compute each clip together, a process each: the device and those after it (on the
    processor, so many processes). Where they cannot, the device does so alone, and jobs' progress says why. unfilled:
    what `check_weights` returned for this version, so that it is not built again: it is filled, and becomes the engine.
    low_memory: on a GPU, load the weights into the processor's memory, from which clips take them part by part; so it
    is, too, where they do not fit on the GPU.
    Raises UserError for an unknown name, for a base beside a whole model and where memory runs out, WeightsError for
    weights that are missing or do not fit, ValueError for an engine that is filled already.
    """
    if unfilled and unfilled._network:
        raise ValueError("This engine has its weights already.")
    path, base_path = _paths(version, checkpoint, base)
    target = choose_device(device)
    dtype = dtype or default_dtype(target)
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is unknown; choose one of {', '.join(DTYPES)}.")
    files = {"checkpoint": path.absolute(), "base": None if base is None else user_path(base).absolute()}
    ranks = start_ranks(target, gpus, {"version": version, "dtype": dtype, "low_memory": low_memory, **files})
    engine = unfilled or build_engine(ALL_VERSIONS[version].config_path)
    target = torch.empty(0, device=target).device  # with its number
    place = _storage(engine, target, DTYPES[dtype], low_memory)
    # Beside the loading: the first time on a machine, compiling takes longer.
    large = target.type == "cuda" and getattr(engine.model.diffusion_model, "model_channels", 0) == 320
    compiling = compile_ahead(target, DTYPES[dtype]) if large else None
    used = load_weights(engine, path, place, DTYPES[dtype], base=base_path, on_progress=on_progress)
    _check_base(path, base, used)
    widen_encoders(engine, DTYPES[dtype])
    engine.version = version
    engine.weights = quick_hash(path)
    if used is not None:
        engine.weights["base"] = quick_hash(used)
    engine.loras = {name: path.absolute() for name, path in (loras or {}).items()}
    engine.ranks = ranks
    ranks.join()
    if compiling:
        compiling.join()
    return engine.freeze(target)


def check_weights(
    version: str = "svd_tiny",
    *,
    checkpoint: str | Path | None = None,
    base: str | Path | None = None,
    loras: Mapping[str, Path] | None = None,
    lora: str = "",
) -> DiffusionEngine:
    """Raise what `load_engine` would raise for these weights, reading headers only: in a fraction of a second.

    lora: a request's LoRAs, which are looked at, too. Returns the engine that the weights fit, still without values:
    `load_engine` takes it as `unfilled`.
    """
    path, base_path = _paths(version, checkpoint, base)
    engine = build_engine(ALL_VERSIONS[version].config_path)
    with open_weights(path, shapes_of(engine), base_path) as weights:
        _check_base(path, base, weights.base)
    for file in open_loras(loras_of(lora, loras), shapes_of(engine), version):
        file.file.close()
    return engine


def _paths(version: str, checkpoint: str | Path | None, base: str | Path | None) -> tuple[Path, Path | None]:
    """Where a version's weights and their base lie. Raises UserError for unknown versions and missing weights."""
    if version not in ALL_VERSIONS:
        raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(ALL_VERSIONS)}.")
    model = ALL_VERSIONS[version]
    path = model.checkpoint_path if checkpoint is None else user_path(checkpoint)
    if path is None:
        raise WeightsError(f"The weights of {version} are missing. {model.how_to_get}")
    base_path = model.base_path if base is None else user_path(base)
    if model.base and checkpoint is None and base_path is None:
        raise WeightsError(
            f"{version} is laid over {model.base}, whose weights are missing. {ALL_VERSIONS[model.base].how_to_get}"
        )
    return path, base_path


def _check_base(path: Path, base: str | Path | None, used: Path | None) -> None:
    if base is not None and used is None:
        raise UserError(f"{path} is a whole model, which takes nothing from a base: leave out the base {base}.")


def _storage(engine: DiffusionEngine, device: torch.device, dtype: torch.dtype, low_memory: bool) -> torch.device:
    """Where weights for a device are loaded: there or, where they are never all there at once, the processor."""
    free, total = free_memory(device), sum(value.numel() for value in engine.parameters()) * dtype.itemsize
    offloaded = free is not None and (low_memory or total > (1 - RESERVE) * free)
    return torch.device("cpu") if offloaded else device


def default_dtype(device: torch.device) -> str:
    """The name of the fastest dtype on a device without a visible loss of quality.

    float16 on CUDA, as the official models are run; bfloat16 on processors with instructions for it; else float32.
    """
    if device.type == "cuda":
        return "float16"
    features = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
    bfloat16 = features.get("avx512_bf16") or features.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and bfloat16 else "float32"


def build_engine(config: str | Path, overrides: tuple[str, ...] = ()) -> DiffusionEngine:
    """The modules of a YAML, with their parameters on the `meta` device: without memory and values.

    Raises ConfigError for a YAML that describes no model, or one of more than 20,000 parts or 100 billion values.
    """
    model = load_config(config, overrides)["model"]
    try:
        with torch.device("meta"), _bounded():
            engine = instantiate_from_config(model)
    except ConfigError as error:
        raise ConfigError(f"{config} describes no model that can be built. {error}") from error
    if not isinstance(engine, DiffusionEngine):
        raise ConfigError(f"{config}: model.target is {model['target']}, which is no DiffusionEngine.")
    return engine.eval().requires_grad_(False)


def widen_encoders(engine: DiffusionEngine, dtype: torch.dtype) -> None:
    """Have the image encoders of a model in float16 compute in float32: they overflow float16."""
    for embedder in engine.conditioner.embedders:
        if dtype is torch.float16 and hasattr(embedder, "encoder"):
            embedder.encoder.float()


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise ConfigError when this thread builds modules without end."""
    builder, parts, values = threading.get_ident(), 0, 0

    def count(owner: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal parts, values
        if threading.get_ident() != builder:
            return
        if isinstance(part, Tensor) and not part.numel():
            raise ConfigError(f"Its {type(owner).__name__} has a {name} of shape {tuple(part.shape)}, without values.")
        parts, values = parts + 1, values + (part.numel() if isinstance(part, Tensor) else 0)
        if parts > _MOST_PARTS or values > _MOST_VALUES:
            raise ConfigError(
                f"This model has more than {_MOST_PARTS:,} parts or {_MOST_VALUES / 1e9:,.0f} billion values; the "
                "largest known has some 5,000 and 3 billion. Look at its counts of blocks, layers and channels."
            )

    hooks = [register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def copy_to(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A module of the same structure whose parameters and buffers lie on `device`, in `dtype` if given.

    The module itself is not changed.
    """
    copy = object.__new__(type(module))
    copy.__dict__ = dict(module.__dict__)

    def moved(value: Tensor | None) -> Tensor | None:
        return value if value is None else value.to(device, dtype if value.is_floating_point() else None)

    with torch.inference_mode(False), torch.no_grad():
        copy._parameters = {
            name: value if value is None else nn.Parameter(cast(Tensor, moved(value)), requires_grad=False)
            for name, value in module._parameters.items()
        }
        copy._buffers = {name: moved(value) for name, value in module._buffers.items()}
    copy._modules = {
        name: child if child is None else copy_to(child, device, dtype) for name, child in module._modules.items()
    }
    return copy
