"""A network streamed block by block gives the bits of one that is there as a whole, in the memory that is predicted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sgm.memory
from sgm import VideoRequest, generate, load_engine
from sgm.devices import host_buffers
from sgm.engine import DiffusionEngine, copy_to
from sgm.fast.held import Held
from sgm.fast.unet import FastUNet
from sgm.memory import plans
from sgm.speeds import SPEEDS
from sgm.streaming import SLOTS, stream, streamed_bytes
from sgm.unet.unet import UNet
from tests import small_model
from tests.test_lora import TINY_LAYER, write_lora

CPU = torch.device("cpu")
REQUEST = VideoRequest("svd", frames=2, steps=2, height=64, width=64)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionEngine]:
    """A golden case -> a small engine of it."""
    folder = tmp_path_factory.mktemp("configs")
    return cache(lambda case: small_model.made_up(small_model.write_config(folder / f"{case}.yaml", case)))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))


def inputs(unet: Any, views: bool) -> tuple[Tensor, Tensor, dict[str, Tensor], int]:
    """x, c_noise, a condition of two clips, and the frames of each."""
    torch.manual_seed(1)
    frames, width = 6, small_model.ARCH["embed_dim"]
    x, noise = torch.randn(2 * frames, 4, 4, 8), torch.linspace(-1, 1, 2).repeat_interleave(frames)
    c = {"concat": torch.randn(2 * frames, 4, 4, 8), "vector": torch.randn(2 * frames, unet.vector_channels)}
    if views:
        return x, noise, {**c, "crossattn": torch.randn(2, 2, width), "cond_view": torch.randn(6, 4, 4, 8)}, frames
    return x, noise, {**c, "crossattn": torch.randn(2, 1, width).repeat_interleave(frames, 0)}, frames


def there(network: FastUNet) -> tuple[list[int], int]:
    """The blocks of a streamed network whose weights are there, all of them; the bytes of all weights' memory."""
    blocks: Any = network.model.diffusion_model.blocks
    held = [[v for m in block.modules() for v in (*m._parameters.values(), *m._buffers.values())] for block in blocks]
    full = [sum(value is not None for value in values) for values in held]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage() for value in network.model.parameters()}
    return [i for i, values in enumerate(full) if values], sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("case", ["svd_small", "sv4d2_small"])
@torch.inference_mode()
def test_blocks_come_one_after_the_other_and_give_the_same_bits(
    made_up: Callable[[str], DiffusionEngine], case: str
) -> None:
    model = made_up(case).model
    unet = model.diffusion_model
    assert isinstance(unet, UNet)
    x, noise, c, frames = inputs(unet, views=case == "sv4d2_small")
    settings: dict[str, Any] = {"clip_by_clip": True, "max_values": 10**5}
    whole = FastUNet(copy_to(model, CPU))
    wanted = [run(value, noise) for value in (x, 2 * x) for run in (whole.conditioned(c, frames, **settings),)]
    readable = model(x, noise, c, num_video_frames=frames)
    most, blocks = streamed_bytes(model), len(unet.blocks)
    assert most
    assert most < sum(value.nbytes for value in model.parameters())

    seen: list[list[int]] = []
    streamed = stream(model, CPU)

    def look() -> None:
        held, size = there(streamed) if len(seen) < blocks else ([], 0)
        assert size <= most
        seen.append(held)
        if len(seen) == 3 * blocks - 2:
            raise KeyboardInterrupt

    network = streamed.conditioned(c, frames, **settings, check=look)
    assert torch.equal(network(x, noise), wanted[0])
    assert [sorted((i + j) % blocks for j in range(SLOTS)) for i in range(blocks - 1)] == seen[1:blocks]
    with pytest.raises(KeyboardInterrupt):  # cancelled in the middle: the next evaluation begins anew
        network(x, noise)
    assert torch.equal(network(2 * x, noise), wanted[1])
    assert torch.equal(streamed.model(x, noise, c, num_video_frames=frames), readable)  # where there is no fast path
    dropped = ref(stream(model, CPU).model)
    assert dropped() is None  # the device's memory is given back at once
    if case == "sv4d2_small":
        return
    # What is cached of the deep blocks, and another dtype, which leaves the model's own as it is.
    cached = [net.conditioned(c, frames, cache_interval=2, **settings) for net in (whole, streamed)]
    for value in (x, 2 * x):
        assert torch.equal(*(run(value, noise) for run in cached))
    wider = FastUNet(copy_to(model, CPU, torch.float64)).conditioned(c, frames)(x, noise)
    assert torch.equal(stream(model, CPU, torch.float64).conditioned(c, frames)(x, noise), wider)
    assert torch.equal(streamed.conditioned(c, frames, **settings)(x, noise), wanted[0])


class Lanes(TorchDispatchMode):
    """Stands for CUDA's streams: the processor computes, copies take place as late as events allow.

    Events are moments. A copy must wait for one after the latest use of the slot that it overwrites.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.copied = 1, 0
        self.used: dict[int, int] = {}  # slot -> when it was used last
        self.queue: list[Any] = []  # copies and events that are recorded behind them
        self.after = -1  # the moment for which coming copies wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.copy_.default:
            return func(*args, **(kwargs or {}))
        assert self.after > self.used.get(args[0].untyped_storage().data_ptr(), -1)
        self.queue.append(args)
        return args[0]

    def record_event(self) -> object:  # of the copies
        self.queue.append(event := object())
        return event

    def wait_event(self, moment: int) -> None:
        self.after = moment

    def use(self, event: object) -> None:
        """The computing waits for a copy."""
        while event in self.queue:
            entry = self.queue.pop(0)
            if isinstance(entry, tuple):
                entry[0].copy_(entry[1])
                self.copied += 1


@torch.inference_mode()
def test_copies_and_computing_wait_for_each_other(
    made_up: Callable[[str], DiffusionEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lanes = made_up("svd_small").model, Lanes()
    x, noise, c, frames = inputs(model.diffusion_model, views=False)
    wanted = FastUNet(copy_to(model, CPU)).conditioned(c, frames, clip_by_clip=True)(x, noise)
    computing = SimpleNamespace(record_event=lambda: lanes.now, wait_event=lanes.use)
    monkeypatch.setattr("sgm.streaming.copy_stream", lambda device: lanes)
    monkeypatch.setattr(torch.cuda, "stream", lambda copies: copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    network = stream(model, CPU)
    load = network.load

    def noted(block: nn.Module) -> None:
        load(block)
        lanes.used[next(block.parameters()).untyped_storage().data_ptr()] = lanes.now
        lanes.now += 1

    network.load = noted
    run = network.conditioned(c, frames, clip_by_clip=True)
    assert torch.equal(run(x, noise), wanted)
    before = lanes.copied
    assert torch.equal(run(x, noise), wanted)
    assert lanes.copied - before == 2 * len(network.model.diffusion_model.blocks)  # pyright: ignore[reportArgumentType]


def test_the_plan_is_taken_where_parts_do_not_fit_and_gives_the_same_clip(
    made_up: Callable[[str], DiffusionEngine], picture: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = made_up("svd_small")
    engine.version = "svd"
    monkeypatch.setattr(sgm.memory, "_WORKSPACE", {"network": 0, "autoencoder": 0})  # else more than the whole model
    lora = write_lora(tmp_path / "style.safetensors", engine, layers=[TINY_LAYER])
    engine.loras = {"style": lora}
    peaks = [plan.peak for plan in plans(engine, 2, 64, 64, True)]
    assert peaks == sorted(peaks, reverse=True)
    free, notes = peaks[0] * 2, []
    monkeypatch.setattr("sgm.run.free_memory", lambda device: free)

    def make(request: VideoRequest, **options: Any) -> np.ndarray:
        return generate(engine, request, picture, lambda progress: notes.append(progress.note), **options).frames

    styled = REQUEST.replace(lora="style:0.5")
    wanted = [make(request, low_memory=True) for request in (REQUEST, styled)]
    assert "each part on the device only while it is used" in notes[-1]
    free = peaks[1] - 1
    with ThreadPoolExecutor(2) as pool:  # at once, on one engine
        clips = list(pool.map(make, (REQUEST, styled)))
    assert "each block of the network on the device only while it is used" in notes[-1]
    np.testing.assert_array_equal(clips, wanted)
    assert not np.array_equal(wanted[0], wanted[1])

    # Where memory runs out twice, first the one plan and then the other takes over, and nothing is done twice.
    free, calls, failing, denoiser = peaks[0] * 2, count(1), (1, 3), engine.denoiser

    def runs_out(*args: Any) -> Tensor:
        if next(calls) in failing:
            raise torch.cuda.OutOfMemoryError
        return denoiser(*args)

    monkeypatch.setattr(engine, "denoiser", runs_out)
    notes.clear()
    assert np.abs(make(REQUEST.replace(speed="fp8")).astype(int) - wanted[0]).max() <= 1
    said = list(dict.fromkeys(notes))
    assert next(calls) == 5
    assert all(note.count("exact, not in 8 bits") == 1 for note in said)
    assert [note.partition(",")[0].partition(": ")[2] or note.partition(",")[0] for note in said] == [
        "everything on the device",
        "GPU memory ran out; from here on each part on the device only while it is used",
        "GPU memory ran out; from here on each block of the network on the device only while it is used",
    ]

    # The clip's recipe says what its speed lost where an evaluation that is in it was in 8 bits, as on some cards.
    monkeypatch.setattr("sgm.run.has_fp8", lambda device: True)
    for numbers, lost in ((1, 3), SPEEDS["fp8"].cost), ((1, 2), "nothing"):
        failing, calls = numbers, count(1)
        recipe = generate(engine, REQUEST.replace(speed="fp8"), picture).settings["sgm"]
        assert lost in recipe.get("speed", "nothing")
        assert next(calls) == 5


@pytest.mark.parametrize(("free", "low"), [(2**40, False), (2**40, True), (10**6, False)])
def test_weights_that_are_never_all_on_the_device_are_loaded_beside_it(
    monkeypatch: pytest.MonkeyPatch, free: int, low: bool
) -> None:
    """`meta` stands for a GPU: what is loaded there has no values."""
    monkeypatch.setattr("sgm.engine.choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("sgm.engine.free_memory", lambda device: free)
    if free == 2**40 and not low:
        with pytest.raises(RuntimeError, match="meta tensors"):
            load_engine()
        return
    engine = load_engine(low_memory=low)
    assert (engine.device.type, {value.device.type for value in engine.parameters()}) == ("meta", {"cpu"})


@pytest.mark.parametrize("most", [0, 23, 24, 60, 95, 96, None])
@pytest.mark.parametrize("sizes", [[6, 12, 24], [18, 24]])  # frames of the second would lie across the border
def test_what_a_clip_takes_on_the_device_is_bounded(most: int | None, sizes: list[int]) -> None:
    held = Held(torch.empty(0), 4, sizes, most)
    assert held.inside.numel() <= (96 if most is None else most)
    assert held.inside.numel() + held.outside.numel() == 96
    for size in sizes:
        x, value = held.at_end(2, 1, size // 2), torch.randn(4, 2, size // 2)
        x.put(x.part(read=False).copy_(value))
        frames, pixels = slice(1, 3), slice(1, 2)
        assert torch.equal(x.part(), value)
        x.put(x.part(frames, pixels).neg_(), frames, pixels)
        value[frames, pixels] *= -1
        assert torch.equal(x.part(), value)


def test_memory_that_cannot_be_pinned_is_ordinary() -> None:
    buffers = host_buffers([256, 0, 512], torch.device("cuda"))
    assert [len(buffer) for buffer in buffers] == [256, 0, 512]
    assert buffers[0].is_pinned() == torch.cuda.is_available()
