"""What a step of training costs at real size: whole `sgm train` runs, beside a plain loop around diffusers' network.

`python benchmarks/training.py [--steps 40] [--only lora] [--set NAME=VALUE] [--no-limit] [--devices 2] [--tiny]`
prints a Markdown table: median seconds a step and peak memory. Made-up weights and clips; each run is a process of its
own, ours held to the memory that is asked of it. --devices: `sgm train` on so many as well.
--tiny: a small network, to try the program. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GIB = 2**30


class Case(NamedTuple):
    """A row: what is trained ("temporal", "all" or "lora"), at which size, in how many GiB."""

    what: str
    frames: int
    height: int
    width: int
    limit: float

    def __str__(self) -> str:
        trained = {"temporal": "layers over frames", "all": "all layers", "lora": "LoRA rank 16"}[self.what]
        return f"{self.frames}×{self.height}×{self.width}, {trained}"


SMALL, LARGE = (14, 320, 576), (25, 576, 1024)
CASES = [
    *(Case(what, *SMALL, limit) for what, limit in (("temporal", 10), ("all", 20))),
    *(Case(what, *LARGE, limit) for what, limit in (("temporal", 16), ("all", 24))),
    *(Case("lora", *size, limit) for size, limit in ((SMALL, 8), (LARGE, 14))),
]
TINY = [Case(what, 3, 64, 64, 1) for what in ("temporal", "all", "lora")]
BLOCKS = (
    ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
)
OVER_FRAMES = ("temporal_", "time_mixer", "time_pos_embed")  # in diffusers' names, as `train.only=temporal` has it


def prepare(folder: Path, cases: list[Case], tiny: bool) -> None:
    """A config, made-up weights for it such that activations keep their size, and moving clips."""
    from sgm import write_video
    from sgm.config import instantiate_from_config, load_config
    from sgm.training.tasks import save_engine
    from sgm.versions import VERSIONS

    config = ROOT / "tests" / "data" / "goldens" / "svd_small.yaml" if tiny else VERSIONS["svd_xt"].config_path
    (folder / "model.yaml").write_bytes(config.read_bytes())
    torch.manual_seed(0)
    engine = instantiate_from_config(load_config(config)["model"])
    for name, value in engine.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value.data, std=value[0].numel() ** -0.5)
        elif not name.endswith("weight"):
            torch.nn.init.normal_(value.data, std=0.1)
    save_engine(engine, str(folder / "model.safetensors"))
    (folder / "clips").mkdir()
    height, width = (max(getattr(case, side) for case in cases) for side in ("height", "width"))
    noise = torch.rand(1, 3, height // 16, width // 16)
    picture = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)
    pixels = (255 * picture).to(torch.uint8).permute(1, 2, 0).numpy()
    frames = np.stack([np.roll(pixels, 4 * i, axis=1) for i in range(max(case.frames for case in cases) + 5)])
    for number in range(4):
        write_video(folder / "clips" / f"{number}.mp4", np.roll(frames, 50 * number, axis=2), 12)


def ours(case: Case, folder: Path, steps: int, devices: int, more: list[str]) -> tuple[float, float | None]:
    """A whole training on four clips that are encoded once; the seconds a clip by its own log. more: overrides."""
    from sgm.training import run, tasks

    tasks._LOG_EVERY = every = max(steps // 4, 1)
    kind = "lora" if case.what == "lora" else "finetune"
    out = folder / f"out-{case.what}-{case.frames}-{devices}"
    settings = {
        "model": folder / "model.yaml",
        "init": folder / "model.safetensors",
        "out": out,
        "data.folder": folder / "clips",
        "data.frames": case.frames,
        "data.height": case.height,
        "data.width": case.width,
        "train.steps": steps,
        "train.minutes": "null",
        "train.pool": 4,
        "train.fresh": 0,
        "train.devices": devices,
        "train.tensorboard": "false",
        **({} if case.what == "temporal" else {"train.only": "null"}),
    }
    overrides = [*(f"{name}={value}" for name, value in settings.items()), *more]
    run(ROOT / "configs" / "training" / f"svd_{kind}.yaml", overrides)
    if int(os.environ.get("LOCAL_RANK", 0)):  # a process of another device
        raise SystemExit
    with (out / "log" / "metrics.csv").open() as file:
        rates = [float(row["clips_per_second"]) for row in csv.DictReader(file) if row.get("clips_per_second")]
    assert len(rates) == steps // every
    return 1 / statistics.median(rates[1:]), _peak()


def diffusers(case: Case, steps: int, device: str, tiny: bool) -> tuple[float, float | None]:
    """The network alone in a plain loop: gradient checkpointing, autocast in bfloat16 over float32, AdamW."""
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

    small: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": BLOCKS[0],
        "up_block_types": BLOCKS[1],
        "num_attention_heads": (1, 2),
        "cross_attention_dim": 64,
    }
    chosen: dict[str, Any] = small if tiny else {"num_attention_heads": (5, 10, 20, 20)}
    torch.manual_seed(0)
    with torch.device(device):
        network: Any = UNetSpatioTemporalConditionModel(num_frames=case.frames, **chosen)
    network.to(device)  # the mixing factors, which `torch.Tensor([0.5])` makes on the processor all the same
    network.enable_gradient_checkpointing()
    network.train()
    for name, value in network.named_parameters():
        value.requires_grad_(case.what == "all" or any(part in name for part in OVER_FRAMES))
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    width: int = network.config["cross_attention_dim"]
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        x = torch.randn(1, case.frames, 8, case.height // 8, case.width // 8, device=device)
        with torch.autocast(device, torch.bfloat16):
            ids = torch.tensor([[6.0, 127.0, 0.02]], device=device)
            out = network(x, torch.tensor([1.0], device=device), torch.randn(1, 1, width, device=device), ids)[0]
        loss = (out.float() - x[:, :, :4]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[len(times) // 4 :]), _peak()


def _peak() -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def one(who: str, number: int, args: argparse.Namespace) -> None:
    """A contender's run, in this process; prints its figures as JSON, last."""
    case = (TINY if args.tiny else CASES)[number]
    if args.device == "cuda" and who == "ours" and not args.no_limit:
        from sgm.training.thrift import use_expandable_segments

        use_expandable_segments()  # as the run does, but before the device is used
        own = int(os.environ.get("LOCAL_RANK", 0))
        total = torch.cuda.get_device_properties(own).total_memory
        torch.cuda.set_per_process_memory_fraction(min(case.limit * GIB / total, 1.0), own)
    seconds, peak = (
        ours(case, args.folder, args.steps, args.devices, args.set)
        if who == "ours"
        else diffusers(case, args.steps, args.device, args.tiny)
    )
    print("\n" + json.dumps([seconds, peak]))


def measured(who: str, number: int, args: argparse.Namespace, devices: int = 1) -> str:
    """The cell of a run in a process of its own; what has failed leaves the rest of the table."""
    options = ["--one", who, str(number), "--folder", str(args.folder), "--steps", str(args.steps)]
    options += ["--device", args.device, "--devices", str(devices)]
    options += [*(["--tiny"] if args.tiny else []), *(["--no-limit"] if args.no_limit else [])]
    options += [word for text in args.set for word in ("--set", text)]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
    if done.returncode:
        if "out of memory" in done.stderr:
            return "does not fit"
        print(done.stderr[-3000:], file=sys.stderr, flush=True)
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"failed: {lines[-1][:200].replace('|', '/')}"
    seconds, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return f"{seconds:.2f} s" + ("" if peak is None else f", {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="a run, of which the first quarter is left out")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--set", action="append", default=[], help="a setting of `sgm train`, as train.accumulate=2")
    parser.add_argument("--no-limit", action="store_true", help="do not hold our runs to the memory asked")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--devices", type=int, default=1, help="more than one: also `sgm train` on so many, by DDP")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 8:
        parser.error(f"--steps must be 8 or more; got {args.steps}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no CUDA device: try the program with --device cpu --tiny.")
    if args.one:
        one(args.one[0], int(args.one[1]), args)
        return
    cases = TINY if args.tiny else CASES
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        prepare(args.folder, cases, args.tiny)
        device = torch.cuda.get_device_name() if args.device == "cuda" else "processor"
        held = "" if args.no_limit or args.device == "cpu" else ", held to"
        print(f"{device}, torch {torch.__version__}\n")
        more = f" on {args.devices} devices, a clip |" if args.devices > 1 else ""
        print(f"| | plain diffusers loop | `sgm train`{held} |{more}\n{'| --- ' * (4 if more else 3)}|", flush=True)
        for number, case in enumerate(cases):
            if args.only.casefold() not in str(case).casefold():
                continue
            print(f"| {case} |", end=" ", flush=True)
            print("no loader" if case.what == "lora" else measured("diffusers", number, args), end=" | ", flush=True)
            print(measured("ours", number, args) + (f", {case.limit:g} GiB |" if held else " |"), end="", flush=True)
            print(f" {measured('ours', number, args, args.devices)} |" if more else "", flush=True)


if __name__ == "__main__":
    main()
