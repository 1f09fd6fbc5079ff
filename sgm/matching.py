"""Finding a model's tensors in what files hold: other programs' names, wrappers, copies, and what may be left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sgm.formats.diffusers import FIRST_STAGE, UNET, Counterpart, folder_counterparts, unet_counterparts
from sgm.formats.files import Shape, WeightsError

Shapes = Mapping[str, Shape]

# What DistributedDataParallel, DataParallel, torch.compile, FSDP and DeepSpeed put into names.
_WRAPPER = re.compile(
    r"(?:(?<=[./])|^)(module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_ENCODER = r"conditioner\.embedders\.\d+\.encoder\."
_TOWER = r"conditioner\.embedders\.\d+\.open_clip\.model\.visual\."
_ANCHORS = ("time_embed.0.weight", "time_embedding.linear_1.weight")  # of every network: our name and diffusers' one
# Tensors inside a model's parts that computing frames does not need: constants, the text tower, losses of training.
_UNUSED = re.compile(
    r"position_ids$|attn_mask$|open_clip\.(?:mean|std)$|open_clip\.model\.transformer\.|\.(?:loss|loss_fn|lpips)\."
)
_EMA = re.compile(r"(?:^|[./])(?:\w+_)?ema(?:_\w+)?[./]")  # in names of moving averages
_PARTS = ("network", "image encoder", "autoencoder")


class Stored(NamedTuple):
    """A tensor in a file. read(): its values."""

    dtype: torch.dtype
    shape: Shape
    read: Callable[[], Tensor]


class Found(NamedTuple):
    """What was found of a model.

    tensors: under the model's names. missing: names of what it needs and has not. surplus: tensors in the model's parts
    that have no place in it; others: those outside its parts, which may be left out. absent: the parts of which
    nothing was found. notes: what was taken off or left out, for the user. averages: how many tensors are moving
    averages. stored: all that the file holds, without wrappers' parts of names.
    """

    tensors: dict[str, Stored]
    missing: list[str]
    surplus: list[str]
    others: list[str]
    absent: list[str]
    notes: list[str]
    averages: int
    stored: Mapping[str, Stored]


def part_of(name: str) -> str:
    """The part of a model to which one of its tensors belongs."""
    if name.startswith(FIRST_STAGE) or re.match(_ENCODER, name):
        return "autoencoder"
    return "image encoder" if name.startswith("conditioner.") else "network"


def find_tensors(stored: Mapping[str, Stored], expected: Shapes, ema: bool = False) -> Found:
    """Find the tensors that a model expects among those of a file or folder; names in a folder are part/name.

    What inference does not use becomes zeros where it is missing. The two copies of the autoencoder's encoder supply
    each other. ema: take the moving averages of the network's weights in place of the weights.
    """
    notes: list[str] = []
    given, stored = stored, _unwrapped(stored, expected, notes)
    search = _Search(stored, expected)
    if ema:
        search.take_averages()
    averages = len(search.found)
    for name in expected:
        if name in stored:
            search.take(name, (name,))
    unused = search.find_elsewhere() if len(search.found) < len(expected) else set()
    found = search.found
    missing = [name for name in expected if name not in found and name not in unused]
    needed = {part_of(name) for name in expected if name not in unused}
    absent = [part for part in _PARTS if part in needed and not any(part_of(name) == part for name in found)]
    if _PARTS[0] in absent and not ema and (averaged := find_tensors(given, expected, ema=True)).averages:
        averaged.notes.append("the network is there as moving averages alone, which are taken")
        return averaged
    dtype = next((tensor.dtype for tensor in found.values()), None)
    for name in expected:
        if name in unused and name not in found and dtype is not None:
            found[name] = Stored(dtype, expected[name], partial(_zeros, expected[name], dtype))
    surplus, others = _rest(search, ema, notes)
    return Found(found, missing, surplus, others, absent, notes, averages, stored)


class _Search:
    """The state of one search. found: our names -> tensors; used: names in the file that have been taken."""

    def __init__(self, stored: Mapping[str, Stored], expected: Shapes) -> None:
        self.stored, self.expected = stored, expected
        self.found: dict[str, Stored] = {}
        self.used: set[str] = set()
        self.network = next(iter(_prefixes(stored, _ANCHORS)), None) if f"{UNET}{_ANCHORS[0]}" in expected else None

    def take(self, name: str, names: tuple[str, ...], counterpart: Counterpart | None = None) -> bool:
        """Take tensors of the file for one of ours, if they are there; another one may have been taken before."""
        if not all(theirs in self.stored for theirs in names):
            return False
        self.used.update(names)
        if name not in self.found:
            tensors = [self.stored[theirs] for theirs in names]
            self.found[name] = tensors[0] if counterpart is None else _converted(counterpart, tensors)
        return True

    def take_averages(self) -> None:
        """Take the network's moving averages: `model_ema.`, names without dots; or any prefix with `ema` in it."""
        prefix = next((prefix for prefix in _prefixes(self.stored, _ANCHORS[:1], ema=True)), None)
        for name in (name for name in self.expected if name.startswith(UNET)):
            flat = f"model_ema.{name.removeprefix('model.').replace('.', '')}"
            if not self.take(name, (flat,)) and prefix is not None:
                self.take(name, (prefix + name.removeprefix(UNET),))

    def find_elsewhere(self) -> set[str]:
        """Look for what is missing under other names and among copies. Returns our names that are not needed."""
        try:
            counterparts, unmapped = folder_counterparts(self.expected)
        except (KeyError, WeightsError):  # no model of this kind
            return set()
        tower = _prefix_of(self.expected, _TOWER)
        prefixes = {
            "unet": [] if self.network is None else [self.network],
            "vae": ["vae/", "vae."],
            "image_encoder": ["image_encoder/", "image_encoder.", tower],
        }
        for name in [name for name in self.expected if name not in self.found]:
            if name.startswith(UNET) and self.network is not None:
                self.take(name, (self.network + name.removeprefix(UNET),))
            if name not in self.found and name in counterparts:
                part, counterpart = counterparts[name]
                for prefix in prefixes[part]:
                    if self.take(name, tuple(prefix + theirs for theirs in counterpart.names), counterpart):
                        break
        self._copy_encoder(_prefix_of(self.expected, _ENCODER), unmapped)
        return {name for name, substitute in unmapped.items() if substitute is None}

    def _copy_encoder(self, encoder: str, unmapped: Mapping[str, str | None]) -> None:
        """Let the conditioner's encoder and the first stage's, which are the same, supply each other.

        The first stage's may have the convolution that follows it folded into its last one.
        """
        if encoder and f"{encoder}encoder.conv_in.weight" not in self.found:
            for name in self.expected:
                rest = name.removeprefix(encoder)
                if rest != name and rest.startswith(("encoder.", "quant_conv.")):
                    self.take(name, (FIRST_STAGE + rest,))
            last, quant = self.found.get(f"{encoder}encoder.conv_out.weight"), f"{encoder}quant_conv."
            for name in (f"{quant}weight", f"{quant}bias"):
                if last is not None and name in self.expected and name not in self.found:
                    shape = self.expected[name]
                    self.found[name] = Stored(last.dtype, shape, partial(_identity, shape, last.dtype))
        folds = f"{FIRST_STAGE}quant_conv.weight" not in self.expected
        for name, substitute in unmapped.items():
            if name in self.found or substitute not in self.found:
                continue
            tensor, quant = self.found[substitute], f"{encoder}quant_conv."
            kernel, bias = self.found.get(f"{quant}weight"), self.found.get(f"{quant}bias")
            if folds and "encoder.conv_out." in name and kernel and bias:
                pieces = (tensor, kernel, bias)
                tensor = Stored(tensor.dtype, tensor.shape, partial(_folded, *(piece.read for piece in pieces)))
            self.found[name] = tensor


def _unwrapped(stored: Mapping[str, Stored], expected: Shapes, notes: list[str]) -> Mapping[str, Stored]:
    """The tensors without wrappers' parts of their names, and without what all names begin with."""
    taken = {match for name in stored for match in _WRAPPER.findall(name)}
    if taken:
        plain: dict[str, Stored] = {}
        for name in sorted(stored, key=lambda name: bool(_WRAPPER.search(name))):  # plain names first
            short = _WRAPPER.sub("", name)
            plain[name if short in plain else short] = stored[name]
        notes.append(f"{' and '.join(f'`{name}.`' for name in sorted(taken))} taken off its names")
        stored = plain
    anchor = f"{UNET}{_ANCHORS[0]}" if f"{UNET}{_ANCHORS[0]}" in expected else next(iter(expected), "")
    averages = (start for start in _prefixes(stored, (anchor,), ema=True) if all(n.startswith(start) for n in stored))
    prefix = next(iter(_prefixes(stored, (anchor,))), "") or next(averages, "")
    if anchor and anchor not in stored and prefix:
        notes.append(f"`{prefix}` taken off its names")
        stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
    return stored


def _prefixes(names: Iterable[str], anchors: tuple[str, ...], ema: bool = False) -> list[str]:
    """What stands before the first of the anchors that is found, the shortest first; moving averages' apart."""
    for anchor in anchors:
        before = [name.removesuffix(anchor) for name in names if name.endswith(anchor)]
        before = [prefix for prefix in before if prefix[-1:] in ("", ".", "/") and ema == bool(_EMA.search(prefix))]
        if before:
            return sorted(before, key=len)
    return []


def _rest(search: _Search, ema: bool, notes: list[str]) -> tuple[list[str], list[str]]:
    """The tensors that were not taken: those in the model's own parts, and others, of which a note tells."""
    roots = {_root(name) for name in search.expected} | {"unet/", "vae/", "image_encoder/", "vae.", "image_encoder."}
    if search.network:
        roots.add(search.network)
    elif search.network == "":
        bare = [name.removeprefix(UNET) for name in search.expected if name.startswith(UNET)]
        theirs = (counterpart.names[0] for counterpart in unet_counterparts(bare).values())
        roots |= {f"{name.partition('.')[0]}." for name in (*bare, *theirs)}
    copies = (f"{FIRST_STAGE}encoder.", f"{FIRST_STAGE}quant_conv.")  # which a first stage without encoder has not
    if any(name.startswith(copies) for name in search.expected):
        copies = ()
    surplus, averages, others = [], 0, []
    for name in search.stored:
        if name in search.used:
            continue
        if _EMA.search(name):
            averages += 1
        elif not name.startswith(tuple(roots)):
            others.append(name)
        elif not _UNUSED.search(name) and not name.startswith(copies):
            surplus.append(name)
    if averages and not ema:
        notes.append(f"{averages:,} moving averages left out (`sgm convert --ema` takes them)")
    if others:
        names = ", ".join(others[:4]) + (f" and {len(others) - 4:,} more" if len(others) > 4 else "")
        notes.append(f"left out, since this model has no place for it: {names}")
    return surplus, others


def _root(name: str) -> str:
    return next((root for root in (UNET, FIRST_STAGE) if name.startswith(root)), f"{name.partition('.')[0]}.")


def _prefix_of(names: Iterable[str], pattern: str) -> str:
    return next((match[0] for name in names if (match := re.match(pattern, name))), "")


def _converted(counterpart: Counterpart, tensors: list[Stored]) -> Stored:
    shape = counterpart.shape([tensor.shape for tensor in tensors])
    return Stored(tensors[0].dtype, shape, lambda: counterpart.ours([tensor.read() for tensor in tensors]))


def _zeros(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype).expand(shape)


def _identity(shape: Shape, dtype: torch.dtype) -> Tensor:
    """The kernel (c, c, 1, 1) or bias (c,) of a convolution that changes nothing."""
    return (torch.eye(shape[0])[:, :, None, None] if len(shape) > 1 else torch.zeros(shape)).to(dtype)


def _folded(value: Callable[[], Tensor], kernel: Callable[[], Tensor], bias: Callable[[], Tensor]) -> Tensor:
    """A convolution's kernel (o, i, h, w) or bias (o,), with the 1x1 convolution that follows folded in."""
    stored = value()
    mixed = torch.einsum("po,o...->p...", kernel()[:, :, 0, 0].double(), stored.double())
    return (mixed if stored.ndim == 4 else mixed + bias().double()).to(stored.dtype)
