"""SV4D at its official size on a CUDA device, with made-up weights: seconds and memory beside what arithmetic allows.

`python benchmarks/views.py [--versions sv4d,sv4d2,sv4d2_8views] [--steps N] [--low-memory]`
prints a Markdown table. `--count` counts arithmetic and memory alone, without a device; `--small` tries the program
with tiny networks on a processor. See README.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sgm import VIEW_VERSIONS, VideoRequest, ViewsRequest, generate_views, open_clip  # noqa: E402
from sgm.autoencoder import blocks  # noqa: E402
from sgm.config import instantiate_from_config, load_config  # noqa: E402
from sgm.engine import DiffusionEngine, build_engine  # noqa: E402
from sgm.fast.unet import FastUNet  # noqa: E402
from sgm.layers.video import AlphaBlender  # noqa: E402
from sgm.memory import FASTEST, GIB, OFFLOAD, predict  # noqa: E402


class Clock:
    """Seconds of a function's calls on a device, which is waited for."""

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function, self.device, self.seconds = function, device, list[float]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begin = now(self.device)
        result = self.function(*args, **kwargs)
        self.seconds.append(now(self.device) - begin)
        return result


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are there at once, of tensors without memory. peak: the most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._there = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                self._there[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._there = {key: value for key, value in self._there.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._there.values()))
        return result


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def calls(request: ViewsRequest, engine: DiffusionEngine) -> dict[str, Callable[[], Any]]:
    """What a pass does, on tensors without memory: an evaluation with guidance; decoding; encoding what is shown."""
    t, v, rows = request.model.times, request.model.num_views, request.rows
    h, w = (side // engine.factor for side in reversed(request.size))
    unet: Any = engine.model.diffusion_model
    c = {
        "concat": empty(2 * rows, 4, h, w),
        "crossattn": empty(2, t, unet.middle_block[1].transformer_blocks[0].attn2.to_k.in_features),
        "vector": empty(2 * rows, unet.label_emb[0][0].in_features),
        "cond_view": empty(2 * v, 4, h, w),
    }
    x, sigma, pictures = (
        empty(2 * rows, 4, h, w),
        empty(2 * rows),
        empty(rows + v + t, 3, request.height, request.width),
    )
    encoder = next(part for part in engine.conditioner.embedders if hasattr(part, "encoder"))
    fast = engine.model if engine.dtype is torch.float32 else FastUNet(engine.model)
    return {
        "evaluation": lambda: fast(x, sigma, c, num_video_frames=rows),
        "decode": lambda: engine.decode_clip(x[:rows]),
        "encode": lambda: encoder.encoder.encode(pictures.to(next(encoder.parameters()).dtype)),
    }


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@torch.inference_mode()
def counted(request: ViewsRequest) -> dict[str, tuple[float, float]]:
    """Part of a pass -> floating-point operations, and bytes of its tensors at once, by plain torch's operations."""
    blocks._SLICE["meta"] = blocks._SLICE["cuda"]  # as many pictures at once
    engines = [build_engine(request.model.config_path) for _ in range(2)]
    half = engines[1].half()
    for part in half.conditioner.embedders:
        if hasattr(part, "encoder"):
            part.encoder.float()  # as when they are loaded
    for module in half.modules():
        if isinstance(module, AlphaBlender):  # whose value the fast path reads
            module.mix_factor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    found = {}
    for name in ("evaluation", "decode", "encode"):
        call = calls(request, half)[name]
        with FlopCounterMode(display=False) as operations:  # of the readable network; fast products are none to it
            calls(request, engines[0])[name]() if name == "evaluation" else call()
        with Live() as live:
            call()
        found[name] = float(operations.get_total_flops()), float(live.peak)
    return found


def made_up(request: VideoRequest | ViewsRequest, device: torch.device) -> DiffusionEngine:
    """The engine of a version in half precision (float32 on a processor): weights with which activations keep size."""
    with device:
        engine: Any = instantiate_from_config(load_config(request.model.config_path)["model"])
    torch.manual_seed(0)
    for name, value in engine.requires_grad_(False).named_parameters():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            value.fill_(1)
        else:
            value.normal_(std=0.1)
    engine.model.diffusion_model.out[2].weight.mul_(0.1)  # so that the latents stay in bounds
    if device.type == "cuda":
        engine.half()
        for part in engine.conditioner.embedders:
            if hasattr(part, "encoder"):
                part.encoder.float()
    engine.version = request.version
    return engine.to(device).freeze()  # with the buffers that are read from numpy


def rate(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, the median of some."""
    n, dtype = (8192, torch.float16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    clock = Clock(torch.matmul, device)
    for _ in range(20):
        clock(a, b)
    return 2 * n**3 / statistics.median(clock.seconds[5:])


def measured(request: ViewsRequest, device: torch.device, low_memory: bool) -> str:
    """A row of the table: one run of all passes, after one of few steps."""
    parts, engine = counted(request), made_up(request, device)
    frames = open_clip(ROOT / "app" / "clips" / "penguin.webp", request.frames).frames
    clip = request.family.prepare_clip(frames, request)
    first = None
    if request.first:  # random pictures in place of the orbit, which is not measured
        first = np.random.default_rng(0).integers(0, 255, (21, request.height, request.width, 3), dtype=np.uint8)
    notes = list[str]()
    warm = ViewsRequest(request.version, steps=min(3, request.steps))
    generate_views(engine, warm, clip, low_memory=low_memory, first=first)
    evaluation, decode = Clock(engine.denoiser, device), Clock(engine.decode_clip, device)
    vars(engine).update(denoiser=evaluation, decode_clip=decode)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = now(device)
    generate_views(engine, request, clip, lambda at: notes.append(at.note), low_memory=low_memory, first=first)
    seconds = now(device) - begin
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else float("nan")
    passes, speed = len(request.family.passes(request)), rate(device)
    each = parts["evaluation"][0] / speed
    floor = passes * (request.steps * each + (parts["decode"][0] + parts["encode"][0]) / speed)
    plan = predict(engine, request.rows, request.height, request.width, True, OFFLOAD if low_memory else FASTEST)
    print(*dict.fromkeys(filter(None, notes)), sep="\n", flush=True)
    return (
        f"| {request.version} | {passes} × {request.steps} | {seconds:.1f} s | {floor:.1f} s | {seconds / floor:.2f} "
        f"| {statistics.median(evaluation.seconds):.3f} s, {each:.3f} s | {statistics.median(decode.seconds):.2f} s "
        f"| {peak:.1f}, {plan.peak / GIB:.1f} | {speed / 1e12:.3g} |"
    )


def small(folder: Path) -> None:
    """Put tiny networks in the versions' place."""
    from tests.small_model import put_small

    for name in VIEW_VERSIONS:
        case, frames = ("sv4d_small", 7) if name == "sv4d" else ("sv4d2_small", 5)
        put_small(name, case, folder, times=3, frames=frames, width=64, height=64, steps=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default=",".join(VIEW_VERSIONS))
    parser.add_argument("--steps", type=int, help="of each pass (default: the version's own)")
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--count", action="store_true", help="count alone")
    parser.add_argument("--small", action="store_true", help="tiny networks, on the processor")
    arguments = parser.parse_args()
    if not (arguments.count or arguments.small or torch.cuda.is_available()):
        sys.exit("benchmarks/views.py needs a CUDA device; there is none. --count and --small need none.")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.small:
            small(Path(folder))
        requests = [
            ViewsRequest(name, **({"steps": arguments.steps} if arguments.steps else {}))
            for name in arguments.versions.split(",")
        ]
        if arguments.count:
            print("| | TFLOP | GiB |\n| --- | --- | --- |")
            for request in requests:
                for name, (operations, size) in counted(request).items():
                    print(f"| {request.version}, {name} | {operations / 1e12:.3g} | {size / GIB:.2f} |", flush=True)
            return
        device = torch.device("cpu" if arguments.small else "cuda")
        rows = []
        for request in requests:
            rows.append(measured(request, device, arguments.low_memory))
            gc.collect()
            torch.cuda.empty_cache()
    print(f"\n{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}\n")
    print("| | passes × steps | all views | floor | ratio | evaluation, floor | decode | GiB, planned | TFLOP/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
