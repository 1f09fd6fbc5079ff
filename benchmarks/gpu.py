"""One video of SVD-XT's size on a CUDA device, by diffusers and by us, from the same made-up weights on the disk.

`python benchmarks/gpu.py [--steps 25] [--repeat 3] [--only 'ours;diffusers']`
prints a Markdown table: a video's median seconds, an evaluation of the network with guidance, decoding, peak memory,
the first video from process start. Each contender is a process of its own. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from sgm.speeds import SPEEDS  # noqa: E402

GIB = 2**30
SIZE: dict[str, Any] = {"height": 576, "width": 1024}
FRAMES = 25


def weights(folder: Path) -> None:
    """A diffusers folder in half precision: SVD-XT's architecture, weights such that activations keep their size."""
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import StableVideoDiffusionPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    from tests.diffusers_weights import down_blocks

    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=FRAMES)
        vae = AutoencoderKLTemporalDecoder(**down_blocks((128, 256, 512, 512)), layers_per_block=2)
        vision = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            hidden_act="gelu",
        )
        tower = CLIPVisionModelWithProjection(vision)
    for module in (unet, vae, tower):
        for name, value in module.named_parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
            elif "mix_factor" in name:
                torch.nn.init.normal_(value)
            elif "norm" in name and name.endswith("weight"):
                torch.nn.init.ones_(value)
            else:
                torch.nn.init.normal_(value, std=0.1)
        module.half()
    # The last layer small, so that the denoiser of made-up weights does not drive the latents out of bounds.
    unet.conv_out.weight.data *= 0.1
    scheduler = EulerDiscreteScheduler(
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
    )
    pipeline = StableVideoDiffusionPipeline(vae, tower, unet, scheduler, CLIPImageProcessor())
    pipeline.save_pretrained(folder, variant="fp16")


def picture() -> Any:
    from PIL import Image

    file = next(iter(sorted((ROOT / "app" / "samples").glob("*.jpg"))))
    return Image.open(file).convert("RGB").resize((SIZE["width"], SIZE["height"]))


class Clock:
    """Times calls of one function on the device, which is not waited for."""

    def __init__(self, function: Any) -> None:
        self.function, self.events = function, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = self.function(*args, **kwargs)
        end.record()
        self.events.append((start, end))
        return result

    @property
    def seconds(self) -> list[float]:
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in self.events]


def ours(
    folder: str,
    steps: int,
    repeat: int,
    low: bool = False,
    limit: float | None = None,
    triton: bool = True,
    gpus: int = 1,
    by_frames: bool = False,
    speed: str = "exact",
) -> dict[str, Any]:
    start = time.time()
    from sgm import VideoRequest, generate, load_engine

    if not triton:
        os.environ["SGM_TRITON"] = "0"  # see `sgm.fast.ops`
    if by_frames:
        os.environ["SGM_SPLIT"] = "frames"  # see `sgm.fast.shard`
    if limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit * GIB / total)
    loaded = time.perf_counter()
    engine = load_engine("svd_xt", checkpoint=folder, gpus=gpus, low_memory=low)
    loaded = time.perf_counter() - loaded
    notes: list[str] = []

    def on_step(at: Any) -> None:
        if at.note and at.note not in notes:
            notes.append(at.note)

    request, image = VideoRequest("svd_xt", speed=speed), picture()
    request = request.replace(steps=min(steps, request.steps))
    frames: Any = None

    def run() -> None:
        nonlocal frames
        frames = generate(engine, request, image, on_step, low_memory=low).frames

    steps_clock, decode_clock = Clock(engine.denoiser), Clock(engine.decode_clip)
    vars(engine).update(denoiser=steps_clock, decode_clip=decode_clock)
    result = measured(run, repeat, start)
    kept = Path(tempfile.gettempdir()) / "svd_xt_frames.npy"  # of one card, with which the others are compared
    if (gpus > 1 or low or limit) and kept.exists():
        apart = abs(np.load(kept).astype(int) - frames)
        result |= {"levels apart": int(apart.max()), "bytes apart": float((apart > 0).mean())}
    elif speed != "exact" and kept.exists():
        error = np.mean((np.load(kept).astype(float) - frames) ** 2)
        result |= {"PSNR": 10 * np.log10(255**2 / error)}
    elif gpus == 1 and not low and limit is None and triton:
        np.save(kept, frames)
    if gpus > 1:
        result |= where_time_goes(lambda: generate(engine, request.replace(steps=5), image))
    return {
        **result,
        "load": loaded,
        "step": statistics.median(steps_clock.seconds[2:]),
        "decode": statistics.median(decode_clock.seconds[1:] or decode_clock.seconds),
        "notes": notes,
    }


@torch.inference_mode()
def launching(folder: str, steps: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of one evaluation, until Python has launched it and until it is done, and whole clips' seconds.

    Launched kernel by kernel, and by CUDA graphs; whether both give the same bits.
    """
    import sgm.fast.graph as graph
    from sgm import VideoRequest, generate, load_engine

    found: dict[str, Any] = {}
    engine = load_engine("svd_xt", checkpoint=folder)
    tiny = load_engine("svd_tiny")
    for frames, h, w, clips in ((25, 72, 128, 2), (25, 72, 128, 1), (14, 40, 72, 2), (14, 24, 40, 2)):
        n = clips * frames
        c = {
            "concat": torch.randn(n, 4, h, w, device="cuda"),
            "crossattn": torch.randn(clips, 1, 1024, device="cuda").repeat_interleave(frames, 0),
            "vector": torch.randn(clips, 768, device="cuda").repeat_interleave(frames, 0),
        }
        x, noise = torch.randn(n, 4, h, w, device="cuda"), torch.full((n,), 0.3, device="cuda")
        row, results = [], []
        for record in (False, True):
            network = engine.network.conditioned(c, frames, record=record)
            graph._LAUNCH_SHARE = 0.0
            times = []
            for _ in range(11):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                out = network(x, noise)
                launched = time.perf_counter() - begin
                torch.cuda.synchronize()
                times.append((1000 * launched, 1000 * (time.perf_counter() - begin)))
            results.append(out)
            row += [round(statistics.median(column), 1) for column in zip(*times[3:], strict=True)]
        found[f"{frames} frames of {8 * w}x{8 * h}, {clips} clips"] = [*row, bool(results[0].equal(results[1]))]
    requests = {
        "svd_xt, 14 frames of 576x320": (engine, VideoRequest("svd_xt", frames=14, width=576, height=320, steps=steps)),
        "svd_xt, its own size": (engine, VideoRequest("svd_xt", steps=steps)),
        "svd_tiny": (tiny, VideoRequest("svd_tiny")),
    }
    for name, (model, request) in requests.items():
        seconds, clips = {2.0: [], 0.6: []}, []
        for share in seconds:
            graph._LAUNCH_SHARE = share
            model.network.recorded.clear()
            for _ in range(repeat + 1):
                begin = time.perf_counter()
                clips.append(generate(model, request, picture()).frames)
                seconds[share].append(time.perf_counter() - begin)
        medians = [round(statistics.median(values[1:]), 3) for values in seconds.values()]
        found[name] = [*medians, bool((clips[0] == clips[-1]).all())]
    return found


def where_time_goes(run: Any) -> dict[str, float]:
    """Seconds of the device's kernels in one run: arithmetic, exchange (with waiting for the others), and neither."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    exchange = arithmetic = 0.0
    for event in profile.key_averages():
        if "nccl" in event.key.lower():
            exchange += event.self_device_time_total / 1e6
        else:
            arithmetic += event.self_device_time_total / 1e6
    return {"profiled": seconds, "exchange": exchange, "arithmetic": arithmetic}


def theirs(folder: str, steps: int, repeat: int, offload: bool = False, compiled: bool = False) -> dict[str, Any]:
    start = time.time()
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16, variant="fp16")
    if offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    image, extra = picture(), {}
    if compiled:
        before = time.perf_counter()
        pipeline.unet = torch.compile(pipeline.unet)
        pipeline(image, **SIZE, num_frames=FRAMES, num_inference_steps=2, decode_chunk_size=8)
        extra["compiling"] = time.perf_counter() - before
        print(f"compiled in {extra['compiling']:.0f} s", flush=True)

    def run() -> None:
        generator = torch.Generator().manual_seed(23)
        pipeline(
            image, **SIZE, num_frames=FRAMES, num_inference_steps=steps, decode_chunk_size=8, generator=generator,
            output_type="np",
        )  # fmt: skip

    forward, decode = Clock(pipeline.unet.forward), Clock(pipeline.decode_latents)
    pipeline.unet.forward, pipeline.decode_latents = forward, decode
    result = measured(run, repeat, start)
    if not offload:
        with torch.inference_mode():
            latents = torch.randn(1, FRAMES, 4, SIZE["height"] // 8, SIZE["width"] // 8, device="cuda").half()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            whole = Clock(pipeline.vae.decode)
            for _ in range(2):
                whole(latents[0], num_frames=FRAMES)
        extra["decode at once"] = whole.seconds[-1]
        extra["its peak"] = torch.cuda.max_memory_allocated() / GIB
    return {
        **result,
        "step": statistics.median(forward.seconds[2:]),
        "decode": statistics.median(decode.seconds[1:]),
        **extra,
    }


def measured(run: Any, repeat: int, start: float) -> dict[str, Any]:
    run()
    first = time.time() - start
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {
        "video": statistics.median(seconds),
        "first": first,
        "peak": torch.cuda.max_memory_allocated() / GIB,
        "reserved": torch.cuda.max_memory_reserved() / GIB,
    }


@torch.inference_mode()
def errors(folder: str) -> dict[str, Any]:
    """Relative error in half precision against float32, of a step's network and of decoding, 9 frames of 320x512."""
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

    from sgm import load_engine

    frames, h, w = 9, 40, 64
    generator = torch.Generator("cuda").manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").half().float()

    x, context, z = noise(2 * frames, 8, h, w), noise(2, 1, 1024), noise(frames, 4, h, w)
    ids = torch.tensor([[6.0, 127.0, 0.02]] * 2, device="cuda")
    sigma, found = torch.full((2 * frames,), 0.7, device="cuda"), {}

    def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
        return float((value.float() - reference).norm() / reference.norm())

    unet: Any = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet", variant="fp16")
    vae: Any = AutoencoderKLTemporalDecoder.from_pretrained(folder, subfolder="vae", variant="fp16")
    unet, vae = unet.cuda(), vae.cuda()
    torch.backends.cudnn.allow_tf32 = False

    def network(unet: Any, dtype: torch.dtype) -> torch.Tensor:
        inputs = x.unflatten(0, (2, frames)).to(dtype)
        return unet.to(dtype)(
            inputs, sigma[0], encoder_hidden_states=context.to(dtype), added_time_ids=ids.to(dtype), return_dict=False
        )[0].flatten(0, 1)

    def decoded(vae: Any, dtype: torch.dtype) -> torch.Tensor:
        return vae.to(dtype).decode(z.to(dtype), num_frames=frames).sample

    network_reference, decoded_reference = network(unet, torch.float32), decoded(vae, torch.float32)
    found["diffusers, network"] = relative(network(unet, torch.float16), network_reference)
    found["diffusers, decoder"] = relative(decoded(vae, torch.float16), decoded_reference)
    del unet, vae
    torch.cuda.empty_cache()
    engine = load_engine("svd_xt", checkpoint=folder)
    embed = engine.conditioner.embedders[1]
    vector = torch.cat([embed(ids[:, i]) for i in range(3)], dim=1)
    c = {
        "concat": x[:, 4:],
        "crossattn": context.repeat_interleave(frames, 0),
        "vector": vector.repeat_interleave(frames, 0),
    }
    out = engine.network(x[:, :4], sigma, c, num_video_frames=frames)
    found["ours, network"] = relative(out, network_reference)
    found["ours, decoder"] = relative(engine.decode_clip(z * engine.scale_factor), decoded_reference)
    found["readable module, network"] = relative(
        engine.model(x[:, :4], sigma, c, num_video_frames=frames), network_reference
    )
    parts = engine.decode_clip(z * engine.scale_factor, 1)
    found["decoded by single frames"] = relative(parts, decoded_reference)
    return found


CONTENDERS: dict[str, Any] = {
    "diffusers": theirs,
    "ours": ours,
    "ours, --low-memory": lambda *args: ours(*args, low=True),
    "ours, limited to 4 GiB": lambda *args: ours(*args, limit=4.0),
    "ours, limited to 8 GiB": lambda *args: ours(*args, limit=8.0),
    "ours, limited to 10 GiB": lambda *args: ours(*args, limit=10.0),
    "ours, without Triton": lambda *args: ours(*args, triton=False),
    "ours, 2 GPUs": lambda *args: ours(*args, gpus=2),
    "ours, 2 GPUs by frames": lambda *args: ours(*args, gpus=2, by_frames=True),
    "ours, 4 GPUs": lambda *args: ours(*args, gpus=4),
    "ours, 4 GPUs by frames": lambda *args: ours(*args, gpus=4, by_frames=True),
    **{f"ours, {speed}": partial(ours, speed=speed) for speed in SPEEDS if speed != "exact"},
    "launching": launching,
    "diffusers, offloaded": lambda *args: theirs(*args, offload=True),
    "diffusers, compiled": lambda *args: theirs(*args, compiled=True),
}


def _fits(contender: str) -> bool:
    """Whether there are as many GPUs as a contender wants."""
    wanted = re.search(r"(\d+) GPUs", contender)
    return wanted is None or int(wanted[1]) <= torch.cuda.device_count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="where the made-up weights are kept between runs")
    parser.add_argument(
        "--only", default=";".join(["errors", *filter(_fits, CONTENDERS)]), help=f"of: errors; {'; '.join(CONTENDERS)}"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a contender is ended")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device; there is none.")
    folder = arguments.weights or Path(tempfile.gettempdir()) / "svd_xt_made_up"
    if arguments.run == "errors":
        print("RESULT", json.dumps(errors(str(folder))))
        return
    if arguments.run:
        print(
            "RESULT", json.dumps(CONTENDERS[arguments.run](str(folder), arguments.steps, arguments.repeat)), flush=True
        )
        return
    if not (folder / "model_index.json").exists():
        subprocess.run(
            [sys.executable, "-c", _IN_OTHER.format(root=str(Path(__file__).parent), folder=str(folder))], check=True
        )
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.steps} steps, {FRAMES} frames of {SIZE}"
    )
    rows: dict[str, dict[str, Any]] = {}
    for name in map(str.strip, arguments.only.split(";")):
        command = [sys.executable, __file__, "--run", name, "--steps", str(arguments.steps), "--weights", str(folder)]
        command += ["--repeat", str(arguments.repeat)]
        last: deque[str] = deque(maxlen=30)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            limit = threading.Timer(arguments.limit, run.kill)
            limit.start()
            for line in run.stdout or ():
                if line.startswith("RESULT "):
                    rows[name] = json.loads(line.removeprefix("RESULT "))
                elif line.startswith("compiled "):
                    print(f"{name}: {line}", end="", flush=True)
                last.append(line)
            limit.cancel()
        print(name, json.dumps(rows[name]) if name in rows else f"failed:\n{''.join(last)}", flush=True)
    base = rows.get("diffusers", {}).get("video")
    print("\n| | video | ratio | step | decode | peak GiB | first video |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        if "video" in row:
            ratio = f"{row['video'] / base:.2f}" if base else ""
            print(
                f"| {name} | {row['video']:.2f} s | {ratio} | {row['step']:.3f} s | {row['decode']:.2f} s "
                f"| {row['peak']:.1f} | {row['first']:.1f} s |"
                + (f" {row['levels apart']} level apart" if "levels apart" in row else "")
                + (f" {row['PSNR']:.1f} dB" if "PSNR" in row else "")
            )


_IN_OTHER = "import sys; sys.path.insert(0, {root!r}); import gpu, pathlib; gpu.weights(pathlib.Path({folder!r}))"

if __name__ == "__main__":
    main()
