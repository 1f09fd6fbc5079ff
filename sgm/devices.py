"""Devices that networks run on: which are here, which were asked for, their memory, and whether one still computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sgm.errors import UserError, printable, shown

logger = logging.getLogger(__name__)
GIB = 2**30
RESERVE = 0.08  # share of the free memory that is left to the libraries' workspaces and to fragmentation


class DeviceFailed(UserError):
    """A device that makes no more clips; the message says which, and why.

    for_good: no clip can be made there until the program ends; else until other programs give its memory back.
    """

    def __init__(self, message: str, for_good: bool = True) -> None:
        super().__init__(message)
        self.for_good = for_good


class DeviceAway(DeviceFailed):
    """A device that is gone with its machine: another may take its place, and any other can make the clip."""


def _there() -> list[str]:
    """The names of the devices that are here, the fastest first."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the fastest available. Raises UserError for one that cannot be used here."""
    there = _there()
    if name is None:
        name = there[0].partition(":")[0]
    try:
        if name.partition(":")[0] not in ("cuda", "mps", "xpu", "cpu"):
            raise RuntimeError("no kind of device that networks run on")
        if name.startswith("mps") and "mps" not in there:
            raise RuntimeError("this machine has no Apple GPU, or this torch is not built for it")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = printable(str(error).partition("\n")[0].partition(". ")[0], 120)
        raise UserError(f"Device '{name}' cannot be used ({reason}); here are: {', '.join(there)}.") from None
    return device


def choose_devices(names: str = "all", gpus: int = 1) -> list[torch.device]:
    """The devices of workers: "all" (every GPU or, without any, the processor), or names with commas between.

    "cpu" may be named more than once: its workers share the threads. Raises UserError for a device that cannot be used
    here, for devices of several kinds, whose clips have other bits, for a GPU that is named twice, and for more workers
    on the processor than it has threads. gpus: how many of the devices compute each clip together (see `load_engine`);
    the first of each so many is returned. Raises UserError where these do not follow one another, too.
    """
    if names.strip().lower() == "all":
        there = _there()
        all_gpus = [torch.device(name) for name in there if name.startswith("cuda")]
        return all_gpus[: max(len(all_gpus) // gpus, 1) * gpus : gpus] or [torch.device(there[0])]
    chosen = [choose_device(name.strip()) for name in names.split(",") if name.strip()]
    if not chosen:
        raise UserError(f"Devices are 'all' or names with commas between, as cuda:0,cuda:1; got {shown(names)}.")
    chosen = [torch.device("cuda", device.index or 0) if device.type == "cuda" else device for device in chosen]
    if len(kinds := dict.fromkeys(device.type for device in chosen)) > 1:
        raise UserError(
            f"Devices must be of one kind, since a clip's bits depend on it; these are {' and '.join(kinds)}."
        )
    for device in chosen:
        if device.type != "cpu" and chosen.count(device) > 1:
            raise UserError(f"{device} is named {chosen.count(device)} times: one clip at a time fills a GPU.")
    if (workers := sum(device.type == "cpu" for device in chosen)) > torch.get_num_threads():
        raise UserError(
            f"cpu is named {workers} times, more often than torch has threads here, {torch.get_num_threads()}: name it "
            "less often, or set OMP_NUM_THREADS."
        )
    firsts = chosen[::gpus]
    together = [torch.device("cuda", (first.index or 0) + i) for first in firsts for i in range(gpus)]
    if gpus > 1 and chosen[0].type == "cuda" and chosen != together:
        raise UserError(
            f"{gpus} GPUs compute each clip together, so name {gpus}, or twice as many, that follow one another, as "
            f"{','.join(map(str, together[:gpus]))}; got {shown(names)}."
        )
    return firsts


def describe_device(device: torch.device) -> str:
    """A device and its free memory, for people."""
    if device.type == "cuda":
        try:
            free, total = (value / GIB for value in torch.cuda.mem_get_info(device))
        except RuntimeError:  # after an error of CUDA's
            return f"{device} does not answer"
        return f"{torch.cuda.get_device_name(device).removeprefix('NVIDIA ')} · {free:.0f} of {total:.0f} GB free"
    return "Apple GPU" if device.type == "mps" else "CPU"


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may use on the device, its present tensors included. None where it is not known."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free + torch.cuda.memory_reserved(device), int(share * total))


def host_buffers(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Buffers of so many bytes in the processor's memory: for a GPU pinned, so that it copies them while it computes.

    Where the system allows no more pinned memory, they are in ordinary memory, whose copies take longer. Torch rounds
    a pinned allocation up to a power of two, so several buffers share one of about a GiB.
    """
    shared: list[list[int]] = [[]]
    for size in sizes:
        if shared[-1] and sum(shared[-1]) + size > GIB:
            shared.append([])
        shared[-1].append(size)
    return [buffer for group in shared for buffer in _host_memory(sum(group), device).split(group)]


def _host_memory(size: int, device: torch.device) -> Tensor:
    if device.type == "cuda" and size:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            logger.info("%.1f GiB stay unpinned: %s", size / GIB, str(error).partition("\n")[0])
    return torch.empty(size, dtype=torch.uint8)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x of the processor's memory on a device; a GPU copies it while it computes, and Python does not wait.

    More than 64 MiB it waits for: torch keeps the pinned memory that this takes.
    """
    if device.type != "cuda" or x.nbytes > 2**26:
        return x.to(device)
    (buffer,) = host_buffers([x.nbytes], device)
    strides = torch.empty_like(x, device="meta").stride()  # x's memory format
    return buffer.view(x.dtype).as_strided(x.shape, strides).copy_(x).to(device, non_blocking=True)


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Raise DeviceFailed in place of an error after which a GPU does not go on; other errors pass.

    After an error of CUDA's the whole process can compute nothing more there: a number is added, to see. Where memory
    ran out, the device has failed if other programs hold most of it; else the clip was too large.
    """
    try:
        yield
    except Exception as error:
        if device.type != "cuda":
            raise
        try:
            (torch.zeros(1, device=device) + 1).item()
            torch.cuda.synchronize(device)
        except (RuntimeError, AssertionError) as broken:
            if not isinstance(broken, torch.cuda.OutOfMemoryError):
                reason = printable(str(broken).partition("\n")[0].rstrip("."), 200)
                raise DeviceFailed(f"{device} does not compute any more: {reason}.") from error
        if _ran_out(error):
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(device)
            others = total - free - torch.cuda.memory_reserved(device)
            if others > total / 2:
                sentence = f"Other programs hold {others / GIB:.0f} of the {total / GIB:.0f} GB of {device}."
                raise DeviceFailed(sentence, for_good=False) from error
        raise


def _ran_out(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a lack of the device's memory."""
    return error is not None and (isinstance(error, torch.cuda.OutOfMemoryError) or _ran_out(error.__cause__))
