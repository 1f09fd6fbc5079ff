"""DiffusionEngine: the loaded parts of one model, and how to load them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.diffusion.denoiser import Denoiser
from sgm.errors import UserError, enough_memory
from sgm.fast.decoder import MAX_VALUES, decode, frame_values
from sgm.fast.ops import channels_last
from sgm.fast.unet import FastUNet
from sgm.unet.wrapper import OpenAIWrapper
from sgm.versions import VERSIONS
from sgm.weights import WeightsError, load_weights, quick_hash

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DiffusionEngine(nn.Module):
    """Network, denoiser, conditioner and first stage: the weights of a model, shared by any number of threads.

    Parameters are the official YAMLs'; `sampler_config` is kept for whoever wants the YAML's own sampler. `freeze` ends
    the building; from then on no value changes. What changes during a job belongs to its `sgm.run.Run`.
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
        self.scale_factor = scale_factor
        self.version = ""
        self.weights: dict[str, Any] = {}  # the checkpoint's name and hash, and its base's, for recipes
        self.latent_channels: int = self.first_stage_model.decoder.z_channels
        self.factor: int = 2 ** (len(self.first_stage_model.decoder.up) - 1)  # pixels a latent, along each side
        self._network: FastUNet | None = None
        self.device = torch.device("cpu")  # where it computes; the weights may lie elsewhere, see `keep_on`
        self._moving = threading.Lock()

    def freeze(self) -> DiffusionEngine:
        """Lay the weights out for inference, once they are all in; the engine itself."""
        self.eval().requires_grad_(False)
        channels_last(self)
        self._network = FastUNet(self.model)
        self.device = next(self.model.parameters()).device
        return self

    @property
    def network(self) -> FastUNet:
        """The network for inference. Raises ValueError while the engine is not frozen."""
        if self._network is None:
            raise ValueError("The engine is not frozen yet: call its freeze() once the weights are in.")
        return self._network

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a job uses one after the other, by name."""
        return {"conditioner": self.conditioner, "network": self.model, "autoencoder": self.first_stage_model}

    def keep_on(self, device: torch.device) -> None:
        """Offload the weights to the processor's memory, or bring them back: the same values, in new tensors.

        For a GPU whose memory runs short. A job that is using the former tensors goes on with them; their memory is
        free once no job does.
        """
        with self._moving:
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
        """(n, 3, h, w) in [-1, 1] -> scaled latents (n, c, h / f, w / f), from whichever encoder the model has."""
        encoder = self.first_stage_model
        if not encoder.can_encode:
            encoder = next(e.encoder for e in self.conditioner.embedders if hasattr(e, "encoder"))
        return encoder.encode(pictures) * self.scale_factor

    def decode(self, z: Tensor, timesteps: int) -> Tensor:
        """Scaled latents (t, c, h, w) of a clip, or of `timesteps` of its frames -> (t, 3, f h, f w), about [-1, 1].

        As the original does it: the `timesteps` frames of one call are the temporal decoder's window.
        """
        return self.first_stage_model.decode(self._unscaled(z), timesteps).float()

    def decode_clip(
        self,
        z: Tensor,
        frames_at_once: int | None = None,
        on_block: Callable[[int, int], None] = lambda done, of: None,
        first_stage: nn.Module | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The same of the whole clip in one window, whatever memory there is: see `sgm.fast.decoder`.

        frames_at_once: how many frames are worked on at once (default: what keeps the device busy). first_stage: a
        copy of `first_stage_model` on z's device, where the weights are offloaded. on_block, check: `decode`'s.
        """
        model: Any = first_stage or self.first_stage_model
        z = model.to_decoder(self._unscaled(z))
        limit = MAX_VALUES if frames_at_once is None else frames_at_once * frame_values(model.decoder, *z.shape[-2:])
        return decode(model.decoder, z, min(limit, MAX_VALUES), on_block, check).float()

    def _unscaled(self, z: Tensor) -> Tensor:
        dtype = next(self.first_stage_model.parameters()).dtype
        return (z / self.scale_factor).to(dtype).to(memory_format=torch.channels_last)


@enough_memory()
def load_engine(
    version: str = "svd_tiny",
    *,
    checkpoint: str | Path | None = None,
    base: str | Path | None = None,
    on_progress: Callable[[float], None] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> DiffusionEngine:
    """Build a version from its YAML and stream its weights in.

    checkpoint: the weights, a file or a diffusers folder (default: the version's own, see `sgm.versions`); one that
    holds the network alone is laid over `base` (default: as the version says). on_progress is told the share of the
    weights that are in. device: "cuda", "mps", "cpu" ... (default: the best there is). dtype: "float32", "float16",
    "bfloat16" (default: see `default_dtype`).
    Raises UserError for a name that is unknown, for a base beside a whole model and where memory runs out, WeightsError
    for weights that are missing or do not fit.
    """
    if version not in VERSIONS:
        raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(VERSIONS)}.")
    row = VERSIONS[version]
    path = row.checkpoint_path if checkpoint is None else Path(checkpoint)
    if path is None:
        raise WeightsError(f"The weights of {version} are missing. {row.how_to_get}")
    target = choose_device(device)
    dtype = dtype or default_dtype(target)
    if dtype not in _DTYPES:
        raise UserError(f"dtype '{dtype}' is unknown; choose one of {', '.join(_DTYPES)}.")
    engine = build_engine(row.config_path)
    under = row.base_path if base is None else base
    if row.base and checkpoint is None and under is None:
        raise WeightsError(
            f"{version} is laid over {row.base}, whose weights are missing. {VERSIONS[row.base].how_to_get}"
        )
    used = load_weights(engine, path, target, _DTYPES[dtype], base=under, on_progress=on_progress)
    if base is not None and used is None:
        raise UserError(f"{path} is a whole model, which takes nothing from a base: leave out the base {base}.")
    for embedder in engine.conditioner.embedders:
        if _DTYPES[dtype] is torch.float16 and hasattr(embedder, "encoder"):
            embedder.encoder.float()  # an image encoder overflows float16
    engine.version = version
    engine.weights = quick_hash(path)
    if used is not None:
        engine.weights["base"] = quick_hash(used)
    return engine.freeze()


def default_dtype(device: torch.device) -> str:
    """The name of the dtype in which a device computes fastest at no visible loss.

    float16 on CUDA, as the official models are run; bfloat16 on processors with instructions for it; else float32.
    """
    if device.type == "cuda":
        return "float16"
    has = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell
    return "bfloat16" if device.type == "cpu" and (has.get("avx512_bf16") or has.get("amx_bf16")) else "float32"


def build_engine(config: str | Path, overrides: tuple[str, ...] = ()) -> DiffusionEngine:
    """The modules of a YAML, with their parameters on the `meta` device: no memory, no weights yet."""
    with torch.device("meta"):
        engine = instantiate_from_config(load_config(config, overrides)["model"])
    return engine.eval().requires_grad_(False)


def copy_to(module: nn.Module, device: torch.device) -> Any:
    """A module of the same structure whose parameters and buffers lie on `device`; the module itself is not changed."""
    copy = object.__new__(type(module))
    copy.__dict__ = dict(module.__dict__)
    with torch.inference_mode(False), torch.no_grad():
        copy._parameters = {
            name: value if value is None else nn.Parameter(value.to(device), requires_grad=False)
            for name, value in module._parameters.items()
        }
        copy._buffers = {name: value if value is None else value.to(device) for name, value in module._buffers.items()}
    copy._modules = {
        name: child if child is None else copy_to(child, device) for name, child in module._modules.items()
    }
    return copy


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is. Raises UserError for one that cannot be used here."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Device '{name}' cannot be used here ({reason}); try --device cpu.") from None
    return device
