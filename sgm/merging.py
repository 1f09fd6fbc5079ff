"""Merging LoRAs into a network: a new network, which shares with the engine's all that the LoRAs do not touch.

W' = W + Σ strength · alpha / rank · up @ down, in float32, rounded once to the weights' dtype.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sgm.engine import copy_to
from sgm.errors import UserError, printable
from sgm.fast.unet import FastUNet
from sgm.formats.diffusers import UNET
from sgm.formats.lora import LoraFile, Shapes
from sgm.formats.tensor_file import is_finite
from sgm.loras import Lora, open_loras
from sgm.weights import shapes_of

logger = logging.getLogger(__name__)

_PART = UNET.split(".")[0] + "."  # of the names of a network's weights in those of a whole model
_lock = threading.Lock()
# The latest merged network of each: switching back and forth between strengths builds anew what they touch alone.
_latest: WeakKeyDictionary[FastUNet, tuple[Sequence[Lora], FastUNet]] = WeakKeyDictionary()


def merged(network: FastUNet, loras: Sequence[Lora], version: str) -> FastUNet:
    """A network with LoRAs merged in; the network itself without any, to the last bit. Neither is written to.

    The latest one of each network is kept while the network is in use, and returned again. version: the model's name,
    for messages. Raises WeightsError for LoRAs that do not fit, UserError where a weight grows beyond its dtype.
    """
    with _lock:
        if not loras:
            _latest.pop(network, None)
            return network
        known = _latest.pop(network, None)
        if known is None or known[0] != loras:
            del known  # frees its memory before the new one is built
            known = loras, _merge(network, loras, version)
        _latest[network] = known
        return known[1]


def _merge(network: FastUNet, loras: Sequence[Lora], version: str) -> FastUNet:
    first = next(network.model.parameters())
    with torch.inference_mode(False), torch.no_grad():
        model: nn.Module = copy_to(network.model, first.device)
        weights = {_PART + name: value for name, value in model.named_parameters()}
        with Merger(loras, {_PART + name: shape for name, shape in shapes_of(model).items()}, version) as merger:
            for note in merger.notes:
                logger.warning("%s", note)
            for name in merger.names:
                # The copy's own parameter, which shares its values with the network's: it gets others.
                weights[name].data = merger.apply(name, weights[name].data)
        return FastUNet(model)  # pyright: ignore[reportArgumentType]


class Merger:
    """Open LoRAs that are added to weights of a model, one at a time. Use as a context manager.

    names: of the weights that they touch. notes: sentences on what does not fit.
    """

    def __init__(self, loras: Sequence[Lora], shapes: Shapes, version: str) -> None:
        self._loras = loras
        self._files = open_loras(list(loras), shapes, version)
        self.names = list(dict.fromkeys(name for file in self._files for name in file.pairs))
        self.notes = [note for file in self._files if (note := _unfit(file, version))]

    def __enter__(self) -> Merger:
        self._open = ExitStack()
        for file in self._files:
            self._open.enter_context(file)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def apply(self, name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The weight with what the LoRAs add to it, in `dtype` (default: its own)."""
        total = weight.float()
        total = total.clone() if total is weight else total
        for lora, file in zip(self._loras, self._files, strict=True):
            if name in file.pairs:
                file.add_to(total, name, lora.strength)
        value = total.to(dtype or weight.dtype)
        if not is_finite(value):
            kind = str(value.dtype).removeprefix("torch.")
            names = ", ".join(f"{lora.name} ({lora.strength:g})" for lora in self._loras)
            raise UserError(
                f"With the LoRAs {names}, {printable(name)} exceeds what {kind} can hold: lower a strength."
            )
        return value


def _unfit(file: LoraFile, version: str) -> str:
    """What of a LoRA has no place, in a sentence, or ""."""
    if not file.unfit:
        return ""
    names = ", ".join(printable(name, 120) for name in file.unfit[:4])
    more = f" and {len(file.unfit) - 4:,} more" if len(file.unfit) > 4 else ""
    return printable(
        f"{file.path.name}: {len(file.pairs)} layers of {version} take it; it has no place for {names}{more}.", 1000
    )


def added_bytes(network: FastUNet, base: FastUNet) -> int:
    """Bytes of a merged network's tensors that its base does not have."""
    if network is base:
        return 0
    there = {value.untyped_storage().data_ptr() for value in base.model.parameters()}
    return sum(v.nbytes for v in network.model.parameters() if v.untyped_storage().data_ptr() not in there)
