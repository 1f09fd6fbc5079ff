"""Several processes that compute a clip together: four on the processor, through gloo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sgm import VideoRequest, generate, load_engine
from sgm.ranks import start_ranks
from tests.test_lora import TINY_LAYER, write_lora

SMALL = {"width": 96, "height": 64, "frames": 6, "steps": 1}
ONE: dict[VideoRequest, np.ndarray] = {}  # the clips of one process
GUIDED = {"guider": "linear", "min_guidance": 1.0, "max_guidance": 3.0}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """One process's engine, and that of four, with a LoRA "style"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        several = load_engine(device="cpu", dtype="float32", gpus=4)
        one = load_engine(device="cpu", dtype="float32")
        style = write_lora(tmp_path_factory.mktemp("loras") / "style.safetensors", one, layers=[TINY_LAYER])
        one.loras = several.loras = {"style": style}
        yield one, several


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    tiles = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(tiles, np.ones((32, 32, 1), np.uint8)))


def apart(engines: tuple[Any, Any], picture: Image.Image, **choices: Any) -> tuple[int, set[str]]:
    """How many levels the clips of one process and of four are apart, and what was said of the four."""
    request, notes = VideoRequest("svd_tiny", **SMALL).replace(**choices), set()
    if request not in ONE:
        ONE[request] = generate(engines[0], request, picture).frames
    four = generate(engines[1], request, picture, lambda at: notes.add(at.note)).frames
    return int(np.abs(ONE[request].astype(int) - four).max()), notes


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(GUIDED, id="guidance first, then frames"),
        pytest.param({"frames": 5}, id="frames of no guidance, in uneven parts"),
        pytest.param({**GUIDED, "frames": 3}, id="a process for each of two clips' frames"),
        pytest.param({"frames": 2, "lora": "style:3"}, id="fewer frames than processes, and a LoRA"),
        pytest.param({"sampler": "dpmpp_2m_sde", "steps": 2}, id="noise in each step"),
    ],
)
def test_four_processes_make_the_clip_of_one(
    engines: tuple[Any, Any], picture: Image.Image, choices: dict[str, Any]
) -> None:
    assert apart(engines, picture, **choices) == (pytest.approx(0, abs=1), {""})


@pytest.mark.parametrize("at", [0, 20, 90])
def test_a_cancelled_clip_leaves_the_processes_at_work(engines: tuple[Any, Any], picture: Image.Image, at: int) -> None:
    checks = iter(range(10**6))

    def check() -> None:
        if next(checks) >= at:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError):
        generate(engines[1], VideoRequest("svd_tiny", **SMALL).replace(steps=6), picture, check=check)
    assert apart(engines, picture)[0] <= 1
    assert not engines[1].ranks.lost


def test_a_process_that_ends_costs_no_clip(engines: tuple[Any, Any], picture: Image.Image) -> None:
    processes = engines[1].ranks.processes
    processes[1].kill()
    levels, notes = apart(engines, picture)
    assert levels == 0
    assert any("Only one device is at work: the process of device 2 ended" in note for note in notes)
    assert all(process.wait(10) for process in processes)


def test_more_gpus_than_there_are_is_one_at_work() -> None:
    here = torch.cuda.device_count()
    ranks = start_ranks(torch.device("cuda"), here + 2, {})
    assert ranks.size == 1
    assert ranks.lost == f"{here + 2} GPUs from cuda:0 on were asked for, here are {here}."
