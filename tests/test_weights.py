"""Strict loading: what does not fit is one error that lists it; what fits costs no second copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sgm.engine import build_engine, default_dtype, load_engine
from sgm.errors import UserError
from sgm.versions import VERSIONS, bundle
from sgm.weights import WeightsError, load_weights

GOLDENS = Path(__file__).parent / "data" / "goldens"
CPU = torch.device("cpu")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.inner = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("fixed", torch.tensor([1.5, 2.5], device="cpu"), persistent=False)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(value.shape) for name, value in Small().state_dict().items()}


@pytest.fixture
def module() -> nn.Module:
    with torch.device("meta"):
        return Small()


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_values_arrive_in_the_dtype_asked_for(
    module: nn.Module, state: dict[str, Tensor], tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    state = {name: value.to(stored) for name, value in state.items()}
    load_weights(module, saved(state, tmp_path), CPU, wanted)
    loaded = module.state_dict()
    assert loaded.keys() == state.keys()
    for name, value in loaded.items():
        assert value.dtype == wanted, name
        assert torch.equal(value, state[name].to(wanted)), name


def test_nothing_stays_on_meta_and_fixed_buffers_keep_their_values(
    module: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    load_weights(module, saved(state, tmp_path), CPU, torch.float32)
    assert not [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    assert module.get_buffer("fixed").tolist() == [1.5, 2.5]
    assert module.get_submodule("inner")(torch.randn(1, 4, 8, 8)).isfinite().all()


def test_a_buffer_that_nobody_fills_is_an_error(module: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    module.register_buffer("forgotten", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(WeightsError, match="leaves forgotten without a value"):
        load_weights(module, saved(state, tmp_path), CPU, torch.float32)


def test_all_that_does_not_fit_is_one_error_and_nothing_is_loaded(
    module: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    del state["first.bias"], state["inner.1.weight"]
    state |= {"extra.weight": torch.zeros(1), "inner.0.weight": torch.zeros(8, 4, 1, 1)}
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_weights(module, path, CPU, torch.float32)
    message = str(caught.value)
    assert str(path) in message
    assert "2 missing: first.bias, inner.1.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 wrongly shaped: inner.0.weight (8, 4, 1, 1) instead of (8, 4, 3, 3)" in message
    assert all(value.is_meta for value in module.parameters())


def test_a_long_list_is_cut_with_its_length(module: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    state |= {f"inner.extra{i:02}": torch.zeros(1) for i in range(20)}
    with pytest.raises(WeightsError, match=r"20 unexpected: inner.extra00, .*extra07 and 12 more") as caught:
        load_weights(module, saved(state, tmp_path), CPU, torch.float32)
    assert "extra08" not in str(caught.value)


def test_a_scalar_and_one_number_in_a_row_are_not_the_same(
    module: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    module.register_parameter("scale", nn.Parameter(torch.zeros((), device="meta")))
    with pytest.raises(WeightsError, match=r"scale \(1,\) instead of \(\)"):
        load_weights(module, saved({**state, "scale": torch.ones(1)}, tmp_path), CPU, torch.float32)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_says_so(module: nn.Module, state: dict[str, Tensor], tmp_path: Path, keep: int) -> None:
    path = saved(state, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"weights\.safetensors is (empty|cut short).*(G|g)et the file again"):
        load_weights(module, path, CPU, torch.float32)


@pytest.mark.parametrize("content", [b"not weights at all, but some text", b"\xff" * 64, b"PK\x03\x04" + bytes(500)])
def test_garbage_says_so(module: nn.Module, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"garbage\.safetensors (cannot be read as safetensors|is a damaged or cut short zip)"
    ):
        load_weights(module, path, CPU, torch.float32)


def test_an_absent_file_and_a_folder_say_so(module: nn.Module, tmp_path: Path) -> None:
    said = {tmp_path / "absent.safetensors": "There are no weights at", tmp_path: "but no diffusers folder"}
    for path, words in said.items():
        with pytest.raises(WeightsError, match=words) as caught:
            load_weights(module, path, CPU, torch.float32)
        assert str(path) in str(caught.value)


def golden_file(folder: Path) -> Path:
    state = build_engine(GOLDENS / "svd_small.yaml").state_dict()
    return saved({name: torch.full(value.shape, 0.01, dtype=torch.float16) for name, value in state.items()}, folder)


def test_a_whole_engine_is_filled_clip_buffers_included(tmp_path: Path) -> None:
    engine = build_engine(GOLDENS / "svd_small.yaml")
    load_weights(engine, golden_file(tmp_path), CPU, torch.float32)
    assert not [name for name, value in (*engine.named_parameters(), *engine.named_buffers()) if value.is_meta]
    clip = engine.conditioner.embedders[0].open_clip
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert clip.std.flatten().tolist() == pytest.approx([0.26862954, 0.26130258, 0.27577711])
    assert "mean" not in clip.state_dict()
    assert clip(torch.rand(1, 3, 64, 64) * 2 - 1).isfinite().all()


def test_load_engine_of_another_model_s_file_lists_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not fit this model\. .* missing: .* unexpected: .* wrongly shaped: "):
        load_engine("svd_tiny", checkpoint=golden_file(tmp_path), device="cpu")


def test_load_engine_keeps_what_it_was_asked_for() -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        engine = load_engine("svd_tiny", device="cpu", dtype=name)
        assert (engine.version, engine.device, engine.dtype) == ("svd_tiny", CPU, dtype)
        assert not engine.training
        assert not any(p.requires_grad for p in engine.parameters())


@pytest.mark.parametrize(
    ("device", "can", "dtype"),
    [
        ("cuda", (), "float16"),
        ("cpu", ("avx512_bf16",), "bfloat16"),
        ("cpu", ("amx_bf16",), "bfloat16"),
        ("cpu", ("avx2",), "float32"),
        ("mps", ("avx512_bf16",), "float32"),
    ],
)
def test_the_dtype_suits_the_device(
    device: str, can: tuple[str, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(can, True), raising=False)
    assert default_dtype(torch.device(device)) == dtype


def test_load_engine_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path))
    with pytest.raises(UserError, match=r"Version 'svd_2' is unknown; choose one of svd_tiny, svd,"):
        load_engine("svd_2")
    with pytest.raises(UserError, match=r"dtype 'float8' is unknown; choose one of float32, float16, bfloat16"):
        load_engine("svd_tiny", device="cpu", dtype="float8")
    with pytest.raises(UserError, match=r"Device 'abacus' cannot be used here .*--device cpu"):
        load_engine("svd_tiny", device="abacus")
    with pytest.raises(WeightsError) as caught:
        load_engine("svd")
    assert "huggingface.co/stabilityai/stable-video-diffusion-img2vid" in str(caught.value)
    assert str(tmp_path / "svd.safetensors") in str(caught.value)
    with pytest.raises(WeightsError, match="There are no weights at"):
        load_engine("svd_tiny", checkpoint=tmp_path / "none.safetensors", device="cpu")


def test_the_shipped_weights_are_float16_and_fit() -> None:
    path = bundle() / "checkpoints" / "svd_tiny.safetensors"
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert stored.keys() == build_engine(VERSIONS["svd_tiny"].config_path).state_dict().keys()
    assert all(value.isfinite().all() for value in stored.values())
    assert path.stat().st_size <= 40e6


MEASURE = """
import sys, torch
from torch import nn
from sgm.weights import load_weights

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(3500, 3500) for _ in range(4)), *(nn.Conv2d(1160, 1160, 3) for _ in range(4)))
before = peak()
load_weights(model, sys.argv[1], torch.device("cpu"), getattr(torch, sys.argv[2]))
linear = (p.permute(0, 2, 3, 1) if p.ndim == 4 else p for p in model.parameters())  # as it lies in memory
total = sum(float(p.flatten()[::500].double().sum()) for p in linear)  # touches every page
print(peak() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_float16_never_becomes_a_float32_copy(tmp_path: Path) -> None:
    with torch.device("meta"):
        layers = [*(nn.Linear(3500, 3500) for _ in range(4)), *(nn.Conv2d(1160, 1160, 3) for _ in range(4))]
        shapes = {name: value.shape for name, value in nn.Sequential(*layers).state_dict().items()}
    path = saved({name: torch.full(shape, 0.5, dtype=torch.float16) for name, shape in shapes.items()}, tmp_path)
    float32 = sum(shape.numel() for shape in shapes.values()) * 4 / 2**20  # MiB
    peaks = {}
    for dtype in ("float16", "float32"):
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path), dtype], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[dtype], total = map(float, done.stdout.split())
        assert total == sum(-(-shape.numel() // 500) for shape in shapes.values()) / 2
    # The weights themselves, what torch takes at first use, and a tensor or two on their way.
    assert peaks["float16"] < 1.3 * float32 / 2 + 64, peaks
    assert peaks["float32"] > float32, peaks  # the measure sees a float32 copy where there is one
