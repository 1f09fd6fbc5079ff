"""DiffusionEngine: the loaded parts of one model, and how to load them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.diffusion.denoiser import Denoiser
from sgm.errors import UserError, enough_memory
from sgm.fast.decoder import MAX_VALUES, decode, frame_values
from sgm.fast.network import FastNetwork
from sgm.unet.wrapper import OpenAIWrapper
from sgm.versions import VERSIONS
from sgm.weights import WeightsError, load_weights

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DiffusionEngine(nn.Module):
    """Network, denoiser, conditioner and first stage. Holds weights and never changes once loaded.

    Parameters are the official YAMLs'; `sampler_config` is kept for whoever wants the YAML's own sampler.
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
        self.network = FastNetwork(self.model)
        self.place: torch.device | None = None  # the device, while parts of the engine are not there
        self._brought: tuple[str, ...] = ()
        # What is on the device and need not be copied back from there, for it never changes.
        self._kept: dict[tuple[int, str], Tensor] = {}
        self.predicted: dict[Any, Any] = {}  # of `sgm.plan`

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return self.place or next(self.model.parameters()).device

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"conditioner": self.conditioner, "network": self.model, "autoencoder": self.first_stage_model}

    def bring(self, *names: str) -> None:
        """Have these of `parts` on the device, and the others in the processor's memory. No name: all on the device."""
        if names == self._brought:
            return
        device = self.device
        with torch.inference_mode(False):
            # What goes first makes room for what comes.
            for name, part in sorted(self.parts.items(), key=lambda entry: not names or entry[0] in names):
                self._move(part, device if not names or name in names else None)
        self.place, self._brought = (device if names else None), names
        if not names:
            self._kept.clear()

    def _move(self, part: nn.Module, device: torch.device | None) -> None:
        """To the device, or to the processor's memory if None."""
        for owner in part.modules():
            groups: tuple[Any, Any] = (owner._parameters, owner._buffers)
            for values in groups:
                for key, value in values.items():
                    if value is None:
                        continue
                    if device is None:
                        kept = self._kept.pop((id(owner), key), None)
                        values[key] = _moved(value, torch.device("cpu")) if kept is None else kept
                    elif value.device != device:
                        self._kept[id(owner), key] = value
                        values[key] = _moved(value, device)

    @property
    def latent_channels(self) -> int:
        return self.first_stage_model.decoder.z_channels

    @property
    def factor(self) -> int:
        """Pixels a latent, along each side."""
        return 2 ** (len(self.first_stage_model.decoder.up) - 1)

    def denoise(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], **inputs: Any) -> Tensor:
        """Estimate the clean latents of x: (b t, c, h, w), sigma: (b t,)."""
        return self.denoiser(self.network, x, sigma, cond, **inputs)

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
        self, z: Tensor, at_once: int | None = None, on_block: Callable[[int, int], None] = lambda done, of: None
    ) -> Tensor:
        """The same of the whole clip, in parts that do not show: see `sgm.fast.decoder`.

        at_once: how many frames are worked on at once (default: what keeps the device busy).
        """
        decoder, z = self.first_stage_model.decoder, self.first_stage_model.to_decoder(self._unscaled(z))
        values = MAX_VALUES if at_once is None else min(MAX_VALUES, at_once * frame_values(decoder, *z.shape[-2:]))
        return decode(decoder, z, values, on_block).float()

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
    Raises UserError for a name that is unknown and where memory runs out, WeightsError for weights that are missing or
    do not fit.
    """
    if version not in VERSIONS:
        raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(VERSIONS)}.")
    row = VERSIONS[version]
    path = row.checkpoint_path if checkpoint is None else Path(checkpoint)
    if path is None:
        raise WeightsError(f"The weights of {version} are missing. {row.how_to_get}")
    place = _device(device)
    dtype = dtype or default_dtype(place)
    if dtype not in _DTYPES:
        raise UserError(f"dtype '{dtype}' is unknown; choose one of {', '.join(_DTYPES)}.")
    engine = build_engine(row.config_path)
    base = row.base_path if base is None else base
    if row.base and checkpoint is None and base is None:
        raise WeightsError(
            f"{version} is laid over {row.base}, whose weights are missing. {VERSIONS[row.base].how_to_get}"
        )
    load_weights(engine, path, place, _DTYPES[dtype], base=base, on_progress=on_progress)
    for embedder in engine.conditioner.embedders:
        if _DTYPES[dtype] is torch.float16 and hasattr(embedder, "encoder"):
            embedder.encoder.float()  # an image encoder overflows float16
    engine.version = version
    return engine


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


def _moved(value: Tensor, device: torch.device) -> Tensor:
    moved = value.detach().to(device)
    return nn.Parameter(moved, requires_grad=False) if isinstance(value, nn.Parameter) else moved


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Device '{name}' cannot be used here ({reason}); try --device cpu.") from None
    return device
