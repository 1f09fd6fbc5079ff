"""What it costs to change a request's LoRAs: a job's seconds after a change, beside the same job again.

`python benchmarks/lora.py [--steps 4] [--small]` prints a Markdown table: SVD-XT's network at its official size on a
CUDA device, with made-up weights and LoRAs of rank 16. --small: svd_tiny on a processor. See README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.views import Clock, made_up  # noqa: E402
from sgm import VideoRequest, generate, load_engine  # noqa: E402

TARGETS = {"attention over frames": ".time_stack.", "all attention": "."}


def write(path: Path, network: nn.Module, part: str, rank: int = 16) -> int:
    """A LoRA of random numbers for the attention's layers whose names hold `part`. -> how many those are."""
    tensors = dict[str, torch.Tensor]()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and ".attn" in name and part in name:
            n, m = layer.weight.shape
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, m).half() / m**0.5
            tensors[f"{name}.lora_up.weight"] = 0.1 * torch.randn(n, rank).half()
    save_file(tensors, path)
    return len(tensors) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="of a job")
    parser.add_argument("--small", action="store_true", help="svd_tiny, on the processor")
    arguments = parser.parse_args()
    if not (arguments.small or torch.cuda.is_available()):
        sys.exit("benchmarks/lora.py needs a CUDA device; there is none. --small needs none.")
    device = torch.device("cpu" if arguments.small else "cuda")
    settings: dict[str, Any] = {"version": "svd_tiny", "height": 64, "width": 64} if arguments.small else {}
    request = VideoRequest(**{"version": "svd_xt", "steps": arguments.steps, **settings})
    engine = load_engine(request.version) if arguments.small else made_up(request, device)
    shape = request.height, request.width, 3
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def job(lora: str = "") -> float:
        clock = Clock(generate, device)
        clock(engine, request.replace(lora=lora), picture)
        return clock.seconds[0]

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job()
        for title, part in TARGETS.items():
            paths = {name: Path(folder, f"{name}.safetensors") for name in ("one", "other")}
            layers = min(write(path, engine.model.diffusion_model, part) for path in paths.values())
            engine.loras = paths
            again = statistics.median(job() for _ in range(3))
            changes = {"one": "one:1", "another": "other:1", "its strength": "other:0.5", "both": "one:1 + other:1"}
            costs = [job(text) - again for text in changes.values()]
            cells = [f"{title}, {layers} layers", *(f"{seconds:.2f} s" for seconds in [again, *costs])]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    print(f"\n{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}\n")
    print("| LoRA | a job without one | with one: more | another | its strength | both |")
    print("| --- | --- | --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
