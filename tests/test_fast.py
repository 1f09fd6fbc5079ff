"""The fast paths compute what the readable modules do; the kernels what plain torch does."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast
from weakref import WeakValueDictionary

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.engine import DiffusionEngine
from sgm.fast.decoder import decode
from sgm.fast.ops import Measured, Ops, channels_last, for_clip, for_device, has_fp8
from sgm.fast.shard import Ranks, Shard
from sgm.fast.torch_ops import ProcessorOps, TorchOps
from sgm.layers.attention import CrossAttention, FeedForward
from sgm.layers.residual import GroupNorm, TemporalConv
from sgm.layers.video import SpatialVideoTransformer, VideoResBlock
from sgm.training.recorded import GraphedNetwork
from sgm.training.thrift import fuse_layers
from sgm.unet.unet import Block, UNet
from sgm.unet.video_unet import VideoUNet
from tests import small_model
from tests.beside import Beside

F64 = torch.float64


@pytest.fixture(params=["here", "cuda", "cuda without Triton"])
def ops_and_device(request: pytest.FixtureRequest) -> tuple[Ops, torch.device]:
    """Operations, and a device to try them on: those of a processor, of a GPU, and in plain torch those of a GPU."""
    on_gpu, on_processor = torch.cuda.is_available(), torch.device("cpu")
    if request.param == "cuda without Triton":  # which a processor can run, too
        return TorchOps(), torch.device("cuda") if on_gpu else on_processor
    if request.param == "cuda" and not on_gpu:
        pytest.skip("no CUDA device here; Triton's interpreter tries the kernels")
    with_triton = request.param == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    device = torch.device("cuda") if request.param == "cuda" else on_processor
    ops = for_device(device)
    assert (type(ops).__name__ == "TritonOps") == with_triton
    return ops, device


INTERPRETED = "Triton's interpreter, which takes long, runs the same kernels at smaller sizes"


def test_the_kernels_in_triton_s_interpreter(beside: Beside) -> None:
    pytest.importorskip("triton", reason="Triton is not made for this system: plain torch takes its place here")
    status, output = beside.done("interpreter")
    assert status == 0, output
    assert "19 passed" in output


SIZES = {  # what each kernel is compiled for; the rest are pointers, numbers and strides
    "measure": {"tile": 1024, "height": 64, "width": 64},
    "merge": {"rows": 64, "tile": 1024, "width": 64},
    "combine": {"tile": 1024, "height": 128, "width": 16},
    "scale_shift": {"silu": True, "gaps": True, "height": 128, "width": 64},
    "layer_norm": {"c": 320, "height": 16, "width": 64, "copy": None},
    "layer_norm, with a copy": {"c": 320, "height": 16, "width": 64},
    "exponentials": {"width": 4096},
    "geglu": {"height": 64, "width": 64},
    "linear_geglu": {"scaled": False, "height": 128, "width": 64, "depth": 64},
    "linear_geglu, fp8": {"scaled": True, "height": 128, "width": 64, "depth": 64},
    "product_fp8": {
        **{"inner": 320, "taps": 9, "gaps": True, "add": True},
        **{"height": 128, "width": 128, "depth": 64},
    },
    "blend": {"height": 128, "width": 64},
    "blend_measured": {"tile": 1024, "height": 64, "width": 64},
    "interleave": {"height": 64, "width": 64},
    "sum_taps": {"width": 1024},
    "temporal_attention": {"rows": 32, "d": 64},
    "gradient_sums": {"silu": True, "tile": 1024, "height": 64, "width": 64},
    "group_norm_gradient": {"silu": True, "height": 128, "width": 64},
    "geglu_gradient": {"height": 64, "width": 64},
    "residual_sum": {
        **dict.fromkeys(("with_a", "with_b", "with_add", "with_factor"), True),
        **{"height": 128, "width": 64},
    },
    "temporal_attention_gradient": {"rows": 32, "d": 64},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_kernels_compile_for_a_gpu(name: str) -> None:
    """For a Hopper card, which need not be there."""
    pytest.importorskip("triton", reason="Triton is not made for this system")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from sgm.fast import gradient_kernels, triton_kernels

    sizes, found = (
        SIZES[name],
        (vars(module).get(name.partition(",")[0]) for module in (triton_kernels, gradient_kernels)),
    )
    kernel: Any = next(kernel for kernel in found if kernel is not None)
    half = "x out copy a b add weight bias q k v residual grad both of_q of_k of_v"
    single = (
        "mean deviation block_mean block_deviation scale shift factor offset of_grad of_product mean_grad mean_product "
        "products"
    )
    kinds = dict.fromkeys(half.split(), "*fp16") | dict.fromkeys(single.split(), "*fp32")
    kinds |= dict.fromkeys(("eps", "weight_a", "weight_b"), "fp32")
    if name.startswith("temporal_attention"):
        kinds["scale"] = "fp32"
    elif name == "product_fp8":
        kinds["factor"] = "fp32"
    elif name == "exponentials":
        kinds |= {"scores": "*fp32", "weights": "*fp16", "sums": "*fp32", "scale": "fp32"}
    signature = {
        argument: "constexpr" if argument in sizes else kinds.get(argument, "i32") for argument in kernel.arg_names
    }
    values = {(kernel.arg_names.index(argument),): value for argument, value in sizes.items()}
    if name.startswith("linear_geglu"):
        blocks, dtype = (
            {"x": "128, 64", "weight": "2, 64, 64", "out": "128, 64"},
            "fp8e4nv" if "fp8" in name else "fp16",
        )
        signature |= {argument: f"tensordesc<{dtype}[{block}]>" for argument, block in blocks.items()}
    elif name == "product_fp8":
        signature |= dict.fromkeys(("x", "weight"), "tensordesc<fp8e4nv[128, 64]>")
    built = compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert len(built.asm["cubin"]) > 1000


FRAMES = {"x": [1, 1, 64, 64], "weight": [4, 64, 64], "out": [1, 64, 64]}  # blocks of a convolution over frames
NARROW = {"x": [4, 4, 16, 64], "weight": [4, 64, 64], "out": [4, 16, 64]}  # over narrow pictures
NONE = dict.fromkeys(("narrow", "residual", "add", "mean", "deviation"))
GLUON = {  # what each kernel in Gluon is compiled for: its blocks, and its constants
    "attention": (
        {"queries": [1, 64, 64], "keys": [1, 128, 64], "out": [1, 64, 64]},
        {"stages": 4, "masked": True, "scale": 0.18},
    ),
    "product_geglu": ({"x": [64, 64], "weight": [1, 128, 64], "out": [64, 64]}, {"stages": 3}),
    "short_product, geglu": (
        {"x": [1, 64, 64], "weight": [2, 64, 64], "out": [1, 64, 64]},
        {"kind": "layer norm", "z": None, "copy": None, "parts": 5, "chunk": 5, "places": 1, "stages": 2},
    ),
    "short_product, geglu, with a copy": (
        {"x": [1, 64, 64], "copy": [1, 64, 64], "weight": [2, 64, 64], "out": [1, 64, 64]},
        {"kind": "layer norm", "z": None, "parts": 5, "chunk": 5, "places": 1, "stages": 2},
    ),
    "short_product, affine": (
        {"x": [1, 64, 64], "weight": [1, 64, 64], "out": [1, 64, 64]},
        {"kind": "affine", "z": None, "copy": None, "add": None} | {"parts": 5, "chunk": 5, "places": 1, "stages": 4},
    ),
    "short_product, blend": (
        {"x": [1, 64, 64], "z": [1, 64, 64], "weight": [1, 64, 64], "out": [1, 64, 64]},
        {"kind": "blend", "copy": None, "gain": None, "shift": None, "bias": None}
        | {"parts": 5, "chunk": 1, "places": 4, "stages": 3},
    ),
    "convolution, over frames": (FRAMES, {"columns": 4, "stages": 4, "places": 8, **NONE}),
    "convolution, over frames, with everything": (
        {**FRAMES, "narrow": [1, 64, 64], "residual": [1, 64, 64]},
        {"columns": 5, "stages": 4, "places": 8, "add": None},
    ),
    "convolution, over pictures": (
        {**FRAMES, "x": [1, 4, 64, 64]},
        {"columns": 4, "stages": 4, "places": 2, **NONE},
    ),
    "convolution, over pictures, with everything": (
        {**FRAMES, "x": [1, 4, 64, 64], "narrow": [1, 64, 64], "residual": [1, 64, 64]},
        {"columns": 5, "stages": 4, "places": 2},
    ),
    "convolution, over narrow pictures": (
        NARROW,
        {"columns": 4, "stages": 4, "places": 2, **NONE},
    ),
    "convolution, over narrow pictures, with everything": (
        {**NARROW, "narrow": [1, 64, 64], "residual": [4, 16, 64]},
        {"columns": 5, "stages": 4, "places": 2},
    ),
    "convolution, of upsampled pictures": (
        {**FRAMES, "out": [1, 1, 64, 1, 64]},
        {"columns": 4, "stages": 5, "places": 2, **NONE, "add": None},
    ),
    "convolution, of upsampled pictures, with everything": (
        {**FRAMES, "narrow": [1, 64, 64], "out": [1, 1, 64, 1, 64]},
        {"columns": 5, "stages": 4, "places": 2, "residual": None},
    ),
    "convolution, of upsampled narrow pictures, with everything": (
        {**FRAMES, "narrow": [1, 64, 64], "x": [2, 1, 32, 64], "out": [2, 1, 32, 1, 64]},
        {"columns": 5, "stages": 4, "places": 2, "residual": None},
    ),
    "normed_convolution": (
        {"x": [1, 1, 64, 64], "weight": [2, 64, 64], "out": [1, 64, 64]},
        {"residual": None, "mean": None, "deviation": None, "masked": False},
    ),
    "normed_convolution, with everything": (
        {"x": [1, 1, 64, 64], "weight": [2, 64, 64], "residual": [1, 64, 64], "out": [1, 64, 64]},
        {"masked": True},
    ),
}


@pytest.mark.parametrize("name", GLUON)
def test_the_kernels_in_gluon_compile_for_a_gpu(name: str) -> None:
    """No interpreter runs them: on a Hopper card the tests in half precision do."""
    gluon: Any = pytest.importorskip("triton.experimental.gluon._runtime", reason="Triton is not made for this system")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    from sgm.fast import gluon_attention, gluon_base, gluon_convolutions, gluon_frames, gluon_products

    known = vars(gluon_attention) | vars(gluon_products) | vars(gluon_convolutions) | vars(gluon_frames)
    (blocks, constants), kernel = GLUON[name], known[name.partition(",")[0]]
    describe = partial(gluon_base.gl.NVMMASharedLayout, 128, 16)
    kinds = dict.fromkeys(("gain", "shift"), "*fp32" if "affine" in name or "normed" in name else "*fp16")
    kinds |= dict.fromkeys(("bias", "add"), "*fp16") | dict.fromkeys(("mean", "deviation"), "*fp32")
    kinds |= dict.fromkeys(("weight_x", "weight_z", "eps", "factor"), "fp32")
    kinds |= {argument: f"tensordesc<fp16{block},{describe(rank=len(block))!r}>" for argument, block in blocks.items()}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    source = gluon.GluonASTSource(kernel, signature, values)
    built: Any = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert built.metadata.shared <= 227 * 1024
    assert "wgmma.mma_async" in built.asm["ptx"]


def test_kernels_are_compiled_ahead_as_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled depends on blocks, dtypes, constants and what is missing: SVD's launches are all there."""
    pytest.importorskip("triton.experimental.gluon._runtime", reason="Triton is not made for this system")
    from sgm.fast import gluon_ops

    def kind(parameter: Any, value: Any) -> object:
        if hasattr(value, "block_shape"):
            return value.base.dtype, tuple(value.block_shape)
        if isinstance(value, Tensor):
            return value.dtype, value.data_ptr() % 16 == 0
        if value is None or parameter.is_constexpr:
            return value
        return parameter.do_not_specialize or isinstance(value, float) or value % 16 == 0

    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(gluon_ops, "processors", lambda device: 132)
    monkeypatch.setattr(
        gluon_ops,
        "_launch",
        lambda kernel, programs, *given: launched.append(
            (kernel.__name__, *(kind(*pair) for pair in zip(kernel.params, given, strict=True)))
        ),
    )
    cpu, half = torch.device("cpu"), torch.float16
    for launch in gluon_ops._launches(cpu, half):
        launch()
    ahead = set(launched)
    assert len(ahead) == len(launched) == 27
    launched.clear()

    def of(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=half)

    def moments(n: int, s: int, c: int) -> Tensor:
        return torch.empty(2, n, -(-s // 64), c)

    for s in (2304, 576):
        gluon_ops.attend(of(2, s, 3 * 640), 10)
    y, norm = of(2, 256, 320), nn.LayerNorm(320).to(half)
    gluon_ops.normed_product(y, of(2, 320), norm, of(960, 320), None)
    for copied in (None, of(2, 256, 320)):
        gluon_ops.normed_product(y, of(2, 320), norm, of(2560, 320), of(2560), copied)
    gluon_ops.scaled_product(y, torch.empty(2, 320), torch.empty(2, 320), nn.Linear(320, 320).to(half))
    gluon_ops.add_blended_product(y, y, y, (0.3, 0.7), of(2, 320), of(320, 320))
    gluon_ops.geglu(of(500, 1280), nn.Linear(1280, 10240).to(half))
    for c in (320, 640, 1280, 512, 256):
        onto, weight = of(6, 144, c), of(c, 3, 1, 1, c).movedim(-1, 1)
        for residual in (None, onto):
            gluon_ops.conv_over_frames(of(2, 3, 144, c), weight, 1, residual, 0.3, moments(6, 144, c))
    for c, columns in ((640, 320), (320, 640), (256, 128), (128, 128)):
        picture, weight = of(3, 6, 64, c), of(columns, 3, 3, c).movedim(-1, 1)
        measured = moments(3, 6 * 64, columns)
        gluon_ops.conv_over_pictures(picture, weight, measured=measured)
        gluon_ops.conv_over_pictures(picture, weight, of(3, 6 * 64, columns), of(3, columns), None, measured)
    narrow, weight, measured = of(50, 9, 16, 64), of(1280, 3, 3, 64).movedim(-1, 1), torch.empty(2, 50, 9, 1280)
    gluon_ops.conv_over_pictures(narrow, weight, measured=measured)
    gluon_ops.conv_over_pictures(narrow, weight, of(50, 9 * 16, 1280), of(1280), None, measured)
    for c, w in ((1280, 32), (640, 64), (512, 64), (256, 64)):
        of_upsampled = of(3, 5, w, c), of(4 * c, 2, 2, c).movedim(-1, 1), of(c), torch.empty(2, 3, 4 * 5, c)
        gluon_ops.conv_upsampled(*of_upsampled)
    film, weight, factors = of(1, 5, 192, 128), of(128, 3, 1, 1, 128).movedim(-1, 1), torch.empty(5, 128)
    for residual in (None, of(5, 192, 128)):
        for measured in (None, moments(5, 192, 128)):
            gluon_ops.normed_conv_over_frames(film, factors, factors, weight, residual, 0.3, measured)
    assert set(launched) <= ahead


def test_where_triton_cannot_compile_plain_torch_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class WithoutCompiler(TorchOps):
        def __init__(self, device: torch.device) -> None: ...

        def blend(self, *_: Any, **__: Any) -> NoReturn:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("SGM_TRITON", raising=False)
    monkeypatch.setitem(sys.modules, "sgm.fast.triton_ops", SimpleNamespace(TritonOps=WithoutCompiler))
    for_device.cache_clear()
    try:
        x = torch.ones(2, 3, 16)
        for _ in range(2):
            assert torch.equal(for_device(x.device).blend(x, x, 0.5, 1.0, None), 1.5 * x)
        (warning,) = caplog.messages  # once
        assert "Failed to find C compiler" in warning
        for_device.cache_clear()
        monkeypatch.setenv("SGM_TRITON", "0")
        assert torch.equal(for_device(x.device).blend(x, x, 0.5, 1.0, None), 1.5 * x)
        assert caplog.messages == [warning]  # it was not tried
    finally:
        for_device.cache_clear()


def test_where_gluon_cannot_compile_other_kernels_take_its_place(caplog: pytest.LogCaptureFixture) -> None:
    triton_ops: Any = pytest.importorskip("sgm.fast.triton_ops", reason="Triton is not made for this system")
    tries: list[Tensor] = []

    def attend(qkv: Tensor, heads: int) -> NoReturn:
        tries.append(qkv)
        raise AttributeError("module 'tma' has no attribute 'async_copy_global_to_shared'")

    ops, qkv = triton_ops.TritonOps(torch.device("cpu")), draw(2, 5, 192, device=torch.device("cpu"))
    ops._gluon = SimpleNamespace(attends=lambda *_: True, attend=attend)
    for _ in range(2):
        assert torch.equal(ops.attention(qkv, 1), TorchOps().attention(qkv, 1))
    (warning,) = caplog.messages
    assert "no attribute 'async_copy_global_to_shared'" in warning
    assert len(tries) == 1


def draw(*shape: int, device: torch.device, shift: float = 0.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + shift).to(device)


def close(found: Tensor, wanted: Tensor, bound: float = 3e-6) -> bool:
    wanted = wanted.to(found.device, F64)
    return bool((found.double() - wanted).norm() < bound * wanted.norm())


def few_rows_in_several_tiles(patch: pytest.MonkeyPatch, ops: Ops, device: torch.device, processors: int) -> None:
    """Have a Hopper card's own kernels compute what has few rows, too, and each program go through several tiles."""
    if device.type == "cuda" and ops.has_triton:
        patch.setattr("sgm.fast.gluon_ops.LONG", 1)
        patch.setattr("sgm.fast.gluon_ops.MANY", 1)
        patch.setattr("sgm.fast.gluon_ops.processors", lambda device: processors)


def affine(module: nn.Module) -> Any:
    for i, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator(parameter.device).manual_seed(i))
    return module.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 2])
def test_group_norm_of_parts(ops_and_device: tuple[Ops, torch.device], frames: int) -> None:
    ops, device = ops_and_device
    n = 2 * frames
    x, add = draw(n, 1030, 96, device=device, shift=5.0), draw(n, 96, device=device)
    norm = affine(nn.GroupNorm(32, 96).to(device))

    def expected(x: Tensor) -> Tensor:
        values = (x.double() + add[:, None].double()).unflatten(0, (-1, frames)).permute(0, 3, 1, 2)
        values = F.group_norm(values, 32, norm.weight.double(), norm.bias.double(), norm.eps)
        return values.permute(0, 2, 3, 1).flatten(0, 1)

    wanted = expected(x)
    parts = [ops.measured(x[:, :, :64].contiguous()), ops.measured(x[:, :, 64:].contiguous())]
    assert close(ops.group_norm(parts, norm, frames, add, silu=False), wanted)
    found = ops.empty_moments(n, 1030, 96, device)
    for start in (0, 1024):
        found.measure(x[:, start : start + 1024], start)
    assert close(ops.scale_shift(x, *found.norm(norm, frames, add)), F.silu(wanted))
    half = x.half()
    found = ops.scale_shift(half, *ops.measured(half).moments.norm(norm, frames, add), silu=False)
    assert close(found, expected(half), 6e-4)


def test_layer_norm_geglu_and_blend(ops_and_device: tuple[Ops, torch.device]) -> None:
    ops, device = ops_and_device
    x, y, add = draw(3, 7, 320, device=device), draw(3, 7, 320, device=device, shift=1.0), draw(3, 320, device=device)
    norm = affine(nn.LayerNorm(320).to(device))
    values = x.double() + add[:, None].double()
    wanted = F.layer_norm(values, (320,), norm.weight.double(), norm.bias.double(), norm.eps)
    copied = torch.empty_like(x)
    for given in None, copied:
        assert close(ops.layer_norm(x, norm, add, given), wanted)
    assert torch.equal(copied, x)
    assert close(ops.blend(x, y, 0.3, 0.7, add[0]), 0.3 * x.double() + 0.7 * y.double() + add[0].double())
    for c, dtype, bound in (16, torch.float32, 3e-6), (16, torch.float16, 6e-4), (64, torch.float16, 6e-4):
        wide, rows = affine(nn.Linear(c, 8 * c).to(device, dtype)), draw(150, c, device=device).to(dtype)
        value, gate = F.linear(rows.double(), wide.weight.double(), wide.bias.double()).chunk(2, dim=1)
        assert close(ops.geglu(rows, wide), value * F.gelu(gate), bound)


@pytest.mark.parametrize(("dtype", "shift", "bound"), [(torch.float32, 30.0, 3e-5), (torch.float16, 3.0, 6e-4)])
def test_a_blend_measured_as_it_is_written(
    ops_and_device: tuple[Ops, torch.device], dtype: torch.dtype, shift: float, bound: float
) -> None:
    ops, device = ops_and_device
    x, y = (draw(4, 1030, 96, device=device, shift=mean).to(dtype) for mean in (shift, shift + 10))
    add, norm = draw(4, 96, device=device).to(dtype), affine(nn.GroupNorm(32, 96).to(device))
    wanted = ops.blend(x, y, 0.3, 0.7, add)
    found = ops.blend_measured(x, y, 0.3, 0.7, add, out=y)
    assert found.x is y
    assert torch.equal(y, wanted)
    for moments, values in (
        (found.moments, y),
        (found.split(3)[1].moments, y[3:]),
        (found.updated(found.split(2)).moments, y),
    ):
        for tile, part in enumerate(values.double().split(1024, 1)):
            assert close(moments.mean[:, tile], part.mean(1))
            assert close(moments.deviation[:, tile], part.var(1, correction=0) * part.shape[1], bound)
    assert found.moments is found.moments
    if ops.has_triton:
        parts, merged = y.float().split(64, 1), cast(Any, ops.empty_moments(4, 1030, 96, device))
        mean = torch.stack([part.mean(1) for part in parts], 1)
        deviation = torch.stack([part.var(1, correction=0) * part.shape[1] for part in parts], 1)
        merged.merge(mean, deviation, 64)
        assert close(merged.mean, found.moments.mean, 1e-5)
        assert close(merged.deviation, found.moments.deviation, bound)
    normed = F.group_norm(y.double().transpose(1, 2), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    assert close(
        ops.group_norm([found], norm, silu=False), normed.transpose(1, 2), 6e-4 if dtype.itemsize == 2 else 3e-5
    )


@torch.backends.cudnn.flags(allow_tf32=False)
def test_convolutions_with_a_bias(ops_and_device: tuple[Ops, torch.device]) -> None:
    ops, device = ops_and_device
    picture = draw(2, 7, 10, 8, device=device)
    for stride in (1, 2):
        layer = affine(nn.Conv2d(8, 32, 3, stride, padding=1).to(device))
        wanted = F.conv2d(picture.double().permute(0, 3, 1, 2), layer.weight.double(), layer.bias.double(), stride, 1)
        found = ops.conv(picture, layer)
        assert close(found.x, wanted.permute(0, 2, 3, 1).flatten(1, 2))
        assert close(found.moments.mean[:, 0], wanted.mean((2, 3)))


def test_attention_within_and_across_frames(ops_and_device: tuple[Ops, torch.device]) -> None:
    ops, device = ops_and_device
    qkv = draw(6, 5, 3 * 64, device=device)

    def wanted(order: tuple[int, ...], back: tuple[int, ...]) -> Tensor:
        q, k, v = qkv.double().view(2, 3, 5, 3, 2, 32).permute(order)
        return F.scaled_dot_product_attention(q, k, v).permute(back).reshape(6, 5, 64)

    assert close(ops.attention(qkv, 2), wanted((3, 0, 1, 4, 2, 5), (0, 1, 3, 2, 4)))
    assert close(ops.temporal_attention(qkv, 2, 3), wanted((3, 0, 2, 4, 1, 5), (0, 3, 1, 2, 4)))


@pytest.mark.parametrize("most", [2**22, 2 * 40 * 40, 100])
def test_attention_in_bfloat16_on_processors(most: int) -> None:
    """All heads at once; two; two queries of one at a time."""
    ops = ProcessorOps(max_chunk=most)
    qkv = 2 * draw(6, 40, 3 * 64, device=torch.device("cpu")).bfloat16()

    def wanted(x: Tensor) -> Tensor:
        q, k, v = x.double().unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    assert relative(ops.attention(qkv, 2), wanted(qkv)) < 0.01
    across = wanted(qkv.unflatten(0, (2, 3)).transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 40)).transpose(1, 2)
    assert relative(ops.temporal_attention(qkv, 2, 3), across.flatten(0, 1)) < 0.01
    q, k, v = qkv[0].chunk(3, dim=1)
    alone = F.scaled_dot_product_attention(q.double()[None], k.double()[None], v.double()[None])[0]
    assert relative(ops.wide_attention(q, k, v), alone) < 0.01


@pytest.mark.parametrize("most", [2**25, 10_000])
def test_attention_of_a_wide_head(
    ops_and_device: tuple[Ops, torch.device], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    ops, device = ops_and_device
    if ops.has_triton:
        monkeypatch.setattr("sgm.fast.triton_ops.MAX_SCORES", most)  # some rows at a time
    for dtype, bound in (torch.float32, 3e-6), (torch.float16, 6e-4):
        q, k, v = draw(3, 200, 512, device=device).to(dtype)
        wanted = F.scaled_dot_product_attention(3 * q.double()[None], k.double()[None], v.double()[None])[0]
        assert close(ops.wide_attention(3 * q, k, v), wanted, bound)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here, whose way alone is another than torch's"
)
def test_group_norm_of_channels_last_maps() -> None:
    x, norm = 3 + draw(2, 96, 40, 50, device=torch.device("cuda")), affine(GroupNorm(32, 96).cuda())
    with torch.no_grad():
        found = norm(x.contiguous(memory_format=torch.channels_last))
        wanted = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert close(found, wanted)


@pytest.mark.parametrize(("s", "c"), [(200, 64), (130, 384), (400, 320)])
def test_attention_and_products_in_half_precision(
    ops_and_device: tuple[Ops, torch.device],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    s: int,
    c: int,
) -> None:
    """Of sizes for which Hopper cards have kernels of their own, here for few rows, too, which fill no block."""
    ops, device = ops_and_device
    if device.type == "cpu" and ops.has_triton and s * c > 130 * 384:
        pytest.skip(INTERPRETED)
    few_rows_in_several_tiles(monkeypatch, ops, device, processors=2)
    half = torch.float16
    y, offset = draw(2, s, c, device=device).to(half), draw(2, c, device=device).to(half)
    norm = affine(nn.LayerNorm(c).to(device))
    attention, layer = CrossAttention(c, heads=c // 64).to(device), FeedForward(c).to(device)
    for module in attention, layer:
        for i, value in enumerate(module.parameters()):
            generator = torch.Generator(device).manual_seed(i)
            nn.init.normal_(value, std=value[0].numel() ** -0.5, generator=generator)
    parts = [module.to(half).requires_grad_(False) for module in (norm, attention, layer)]
    doubles: list[Any] = [copy.deepcopy(part).double() for part in parts]
    norm64, attention64, layer64 = doubles
    normed = norm64(y.double() + offset.double()[:, None])
    qkv = torch.cat([project(normed) for project in (attention64.to_q, attention64.to_k, attention64.to_v)], 2)
    found = ops.qkv(y, norm, attention, offset)
    assert close(found, qkv, 1e-3)
    q, k, v = found.double().view(2, s, 3, c // 64, 64).permute(2, 0, 3, 1, 4)
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert close(ops.attention(found, c // 64), wanted, 1e-3)
    found = []
    for max_values in 10**9, s * 4 * c:  # all at once; a frame at a time
        onto, kept, out = y.clone(), y.clone(), torch.full_like(y, float("nan"))
        ops.feed_forward(onto, offset, norm, layer, max_values)
        ops.feed_forward(kept, offset, norm, layer, max_values, out)
        assert torch.equal(kept, y)
        assert torch.equal(out, onto)
        found.append(onto)
    whole, parted = found
    assert close(whole - y, layer64(normed) - layer64.net[2].bias, 3e-3)
    assert close(parted, whole, 1e-3)
    assert not caplog.messages  # no kernel had to be replaced


@pytest.mark.parametrize(("s", "c", "out"), [(200, 64, 64), (130, 128, 320), (1100, 320, 320), (130, 384, 64)])
def test_products_of_norms_and_blends_in_half_precision(
    ops_and_device: tuple[Ops, torch.device],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    s: int,
    c: int,
    out: int,
) -> None:
    ops, device = ops_and_device
    half, n = torch.float16, 3
    if device.type == "cpu" and ops.has_triton:
        pytest.skip("Triton's interpreter, which takes long, runs no kernels in Gluon")
    few_rows_in_several_tiles(monkeypatch, ops, device, processors=2)
    layer, norm = affine(nn.Linear(c, out).to(device)).to(half), affine(nn.GroupNorm(32, c).to(device)).to(half)
    x, y, z = (draw(n, s, c, device=device, shift=shift).to(half) for shift in (0.0, 1.0, -1.0))
    for add in (None, draw(c, device=device).to(half), draw(n, c, device=device).to(half)):
        values = x.double() if add is None else x.double() + add.double().expand(n, c)[:, None]
        values = F.group_norm(values.transpose(1, 2), 32, norm.weight.double(), norm.bias.double(), norm.eps)
        wanted = F.linear(values.transpose(1, 2), layer.weight.double(), layer.bias.double())
        assert close(ops.normed_linear(ops.measured(x), norm, layer, add), wanted, 1e-3)
        wanted = 0.3 * y.double() + 0.7 * z.double()
        wanted = F.linear(wanted if add is None else wanted + add.double().expand(n, c)[:, None], layer.weight.double())
        stream = draw(n, s, out, device=device, shift=2.0).to(half)
        wanted += stream.double()
        found = ops.add_blended_product(stream, y.clone(), z, 0.3, 0.7, add, layer)
        assert found.x is stream
        assert close(stream, wanted, 1e-3)
        for tile, part in enumerate(stream.double().split(1024, 1)):
            assert close(found.moments.mean[:, tile], part.mean(1), 1e-5)
            assert close(found.moments.deviation[:, tile], part.var(1, correction=0) * part.shape[1], 6e-4)
    assert not caplog.messages  # no kernel had to be replaced


@torch.backends.cudnn.flags(allow_tf32=False)
def test_convolutions_over_frames_and_of_doubled_pictures(ops_and_device: tuple[Ops, torch.device]) -> None:
    ops, device = ops_and_device
    x, norm = draw(6, 40, 64, device=device), (draw(6, 64, device=device), draw(6, 64, device=device, shift=1.0))
    over = affine(TemporalConv(64, 32, (3, 1, 1)).to(device))
    values = F.silu(x.double() * norm[0][:, None].double() + norm[1][:, None].double())
    for frames in (6, 3):  # one clip, two clips
        clips = values.unflatten(0, (-1, frames)).permute(0, 3, 1, 2)
        wanted = F.conv2d(clips, over.weight.double().squeeze(-1), padding=(1, 0)).permute(0, 2, 3, 1).flatten(0, 1)
        found = ops.temporal_conv(x, norm, over, Shard(frames))
        assert close(found.x, wanted)
        assert close(found.moments.mean[:, 0], wanted.mean(1))
    base = draw(6, 43, 32, device=device)
    for at in (slice(0, 40), slice(2, 42)):
        onto = base.clone()
        found = ops.temporal_conv(x, norm, over, Shard(3), residual=onto[:, at], branch_weight=0.3)
        assert close(onto[:, at], base[:, at].double() + 0.3 * wanted)
        assert close(found.moments.mean[:, 0], onto[:, at].double().mean(1))
        assert torch.equal(onto[:, : at.start], base[:, : at.start])
    picture, conv = draw(2, 3, 5, 64, device=device), affine(nn.Conv2d(64, 32, 3, padding=1).to(device))
    doubled = F.interpolate(picture.double().permute(0, 3, 1, 2), scale_factor=2.0)
    wanted = F.conv2d(doubled, conv.weight.double(), conv.bias.double(), padding=1).permute(0, 2, 3, 1)
    found = ops.upsample_conv(picture, ops.fused_upsample_weight(conv.weight), conv.bias)
    assert close(found.x, wanted.flatten(1, 2))


def test_convolutions_to_few_channels(ops_and_device: tuple[Ops, torch.device]) -> None:
    ops, device = ops_and_device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    x, conv = draw(3, 5, 9, 64, device=device).to(dtype), affine(nn.Conv2d(64, 3, 3, padding=1).to(device, dtype))
    channels_last(conv)
    with torch.inference_mode():
        wanted = F.conv2d(x.double().permute(0, 3, 1, 2), conv.weight.double(), conv.bias.double(), padding=1)
        assert close(ops.last_conv(x, conv), wanted, 1e-3 if dtype == torch.float16 else 1e-5)
        video, over = ops.last_conv(x, conv), affine(TemporalConv(3, 3, (3, 1, 1)).to(device, dtype))
        wanted = F.conv3d(video.double().movedim(0, 1), over.weight.double(), over.bias.double(), padding=(1, 0, 0))
        found = ops.last_temporal_conv(video, over)
        assert close(found, wanted.movedim(0, 1), 1e-3 if dtype == torch.float16 else 1e-5)


@pytest.mark.parametrize(
    ("s", "c", "columns", "clips"),
    [
        *((200, 64, 320, 2), (130, 128, 64, 1), (1050, 64, 192, 2), (64, 192, 512, 2)),
        *((200, 64, 64, 2), (130, 128, 128, 1), (1050, 128, 128, 2), (64, 128, 128, 3)),  # with the norm in one kernel
    ],
)
def test_convolutions_over_frames_in_half_precision(
    ops_and_device: tuple[Ops, torch.device],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    s: int,
    c: int,
    columns: int,
    clips: int,
) -> None:
    """As plain torch in single precision; Hopper cards have a kernel of their own, with every number of columns."""
    ops, device = ops_and_device
    if device.type == "cpu" and ops.has_triton and s * c * columns > 130 * 128 * 128:
        pytest.skip(INTERPRETED)
    few_rows_in_several_tiles(monkeypatch, ops, device, processors=2)
    frames, half = 5, torch.float16
    x, base = (draw(clips * frames, s, k, device=device, shift=0.5).to(half) for k in (c, columns))
    norm = draw(clips * frames, c, device=device), draw(clips * frames, c, device=device)
    over = affine(TemporalConv(c, columns).to(device))
    nn.init.normal_(over.weight, std=(3 * c) ** -0.5, generator=torch.Generator(device).manual_seed(0))
    channels_last(over)
    exact = copy.deepcopy(over)
    wanted = TorchOps().temporal_conv(x.float(), norm, exact, Shard(frames)).x
    over = over.to(half).requires_grad_(False)

    def check(found: Measured, wanted: Tensor) -> None:
        assert close(found.x, wanted, 1e-3)
        for tile, part in enumerate(found.x.double().split(1024, 1)):
            assert close(found.moments.mean[:, tile], part.mean(1), 1e-5)
            assert close(found.moments.deviation[:, tile], part.var(1, correction=0) * part.shape[1], 6e-4)

    plain = ops.temporal_conv(x, norm, over, Shard(frames))
    check(plain, wanted)
    onto = base.clone()
    added = ops.temporal_conv(x, norm, over, Shard(frames), residual=onto, branch_weight=0.3)
    assert added.x is onto
    check(added, base.float() + 0.3 * wanted)
    for measure in (True, False):
        onto = torch.cat([base, base], dim=1)
        part = onto[:, s : 2 * s]  # of a larger activation
        ops.temporal_conv(x, norm, over, Shard(frames), residual=part, branch_weight=0.3, measure=measure)
        assert close(part, added.x, 1e-3)
        assert torch.equal(onto[:, :s], base)
    larger, onto = torch.cat([x, x], dim=1), torch.cat([base, base], dim=1)
    found = ops.temporal_conv(larger[:, s:], norm, over, Shard(frames), measure=False, out=onto[:, :s])
    assert torch.equal(found.x, plain.x)
    assert torch.equal(onto[:, s:], base)
    if gluon := getattr(ops, "_gluon", None):  # with frames of a neighbour for padding
        assert gluon.convolves_normed(x.unflatten(0, (clips, frames)), over.weight) == (c == columns <= 128)
        y = ops.scale_shift(x, *norm).unflatten(0, (clips, frames))
        assert gluon.convolves(y, over.weight, onto)
        assert torch.equal(
            gluon.conv_over_frames(y, over.weight, 0), plain.x.unflatten(0, (clips, frames))[:, 1:-1].flatten(0, 1)
        )
    assert not caplog.messages  # no kernel had to be replaced


@pytest.mark.parametrize(
    ("n", "size", "c", "columns"),
    [
        *((3, (5, 64), 64, 320), (3, (18, 64), 128, 64), (3, (7, 128), 64, 192), (3, (4, 192), 192, 256)),
        *((7, (9, 16), 64, 320), (5, (5, 16), 128, 640), (8, (65, 16), 64, 320)),  # four side by side
    ],
)
def test_convolutions_of_pictures_in_half_precision(
    ops_and_device: tuple[Ops, torch.device],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    size: tuple[int, int],
    c: int,
    columns: int,
) -> None:
    """As plain torch in double precision; Hopper cards have a kernel of their own, for odd heights, too."""
    ops, device = ops_and_device
    if device.type == "cpu" and ops.has_triton:
        pytest.skip("Triton's interpreter, which takes long, runs no kernels in Gluon")
    few_rows_in_several_tiles(monkeypatch, ops, device, processors=3)
    half, (h, w) = torch.float16, size
    x, base = draw(n, h, w, c, device=device, shift=0.5).to(half), draw(n, h * w, columns, device=device).to(half)
    layer = nn.Conv2d(c, columns, 3).to(device, half).requires_grad_(False)
    nn.init.normal_(layer.weight, std=(9 * c) ** -0.5, generator=torch.Generator(device).manual_seed(0))
    channels_last(layer)
    weight = layer.weight
    plain = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), padding=1).permute(0, 2, 3, 1).flatten(1, 2)

    def check(found: Measured, wanted: Tensor) -> None:
        assert close(found.x, wanted, 1e-3)
        for tile, part in enumerate(found.x.double().split(1024, 1)):
            assert close(found.moments.mean[:, tile], part.mean(1), 1e-5)
            assert close(found.moments.deviation[:, tile], part.var(1, correction=0) * part.shape[1], 6e-4)

    for bias in (None, draw(columns, device=device).to(half), draw(n, columns, device=device).to(half)):
        added = 0.0 if bias is None else bias.double().expand(n, columns)[:, None]
        if bias is None or bias.ndim == 1:
            found, pending = ops.spatial_conv(x, weight, bias)
            check(found, plain if pending is not None else plain + added)
        if ops.has_triton or bias is None or bias.ndim == 1:
            found, pending = ops.spatial_conv(x, weight, bias, base)
            assert pending is None
            check(found, base.double() + plain + added)
            onto = torch.cat([base, base], dim=1)
            part = onto[:, h * w :]  # of a larger activation, in its place
            assert ops.spatial_conv(x, weight, bias, part, part)[0].x is part
            assert torch.equal(part, found.x)
            assert torch.equal(onto[:, : h * w], base)
    if gluon := getattr(ops, "_gluon", None):
        assert gluon.convolves(x, weight, base, part)
    assert not caplog.messages  # no kernel had to be replaced


@pytest.mark.parametrize(
    ("size", "c", "columns", "n"),
    [
        *(((5, 64), 64, 320, 3), ((4, 128), 128, 64, 1), ((7, 192), 64, 192, 2), ((1, 64), 192, 512, 5)),
        *(((3, 32), 64, 320, 5), ((18, 32), 128, 128, 2)),  # two side by side
    ],
)
def test_convolutions_of_doubled_pictures_in_half_precision(
    ops_and_device: tuple[Ops, torch.device],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    c: int,
    columns: int,
    n: int,
) -> None:
    """As in double precision; Hopper cards have a kernel of their own, for odd heights, too."""
    ops, device = ops_and_device
    if device.type == "cpu" and ops.has_triton:
        pytest.skip("Triton's interpreter, which takes long, runs no kernels in Gluon")
    few_rows_in_several_tiles(monkeypatch, ops, device, processors=3)
    half, (h, w) = torch.float16, size
    x = draw(n, h, w, c, device=device, shift=0.5).to(half)
    layer = affine(nn.Conv2d(c, columns, 3).to(device)).to(half).requires_grad_(False)
    nn.init.normal_(layer.weight, std=(9 * c) ** -0.5, generator=torch.Generator(device).manual_seed(0))
    channels_last(layer)
    weight, norm, bias = ops.fused_upsample_weight(layer.weight), nn.GroupNorm(32, columns).to(device), layer.bias
    doubled = F.interpolate(x.permute(0, 3, 1, 2).double(), scale_factor=2.0)
    wanted = F.conv2d(doubled, layer.weight.double(), cast(Tensor, bias).double(), padding=1)
    found = ops.upsample_conv(x, weight, cast(Tensor, bias))
    assert close(found.x, wanted.permute(0, 2, 3, 1).flatten(1, 2), 1e-3)
    for known, measured in zip(found.moments.norm(norm), ops.measured(found.x).moments.norm(norm), strict=True):
        assert close(known, measured, 6e-4)
    if gluon := getattr(ops, "_gluon", None):
        assert gluon.upsamples(x, weight)
        assert found.known is not None
    assert not caplog.messages  # no kernel had to be replaced


def test_conditions_of_a_clip_share_its_weights_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: it is for Linux and Windows")
    monkeypatch.setattr("sgm.fast.ops.has_fp8", lambda device: True)
    in_use: WeakValueDictionary[torch.device, Ops] = WeakValueDictionary()
    device = torch.device("cpu")
    ops = for_clip(device, True, in_use)
    assert ops is for_clip(device, True, in_use) is not for_clip(device, False, in_use)
    del ops
    assert not in_use  # they go with the clip


def test_products_in_8_bits(ops_and_device: tuple[Ops, torch.device]) -> None:
    """Nearly what those in half precision give; the same where the device has none."""
    exact, device = ops_and_device
    ops = for_clip(device, True, {}) if exact is for_device(device) else exact
    bound = (0.05 if device.type == "cuda" else 0.12) if has_fp8(device) and ops is not exact else 0.0  # it truncates
    dtype = torch.float16 if bound else torch.float32

    def module(layer: nn.Module) -> Any:
        generator = torch.Generator().manual_seed(1)
        for value in layer.parameters():
            std = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
            nn.init.normal_(value, std=std, generator=generator)
        return layer.requires_grad_(False).to(device, dtype)

    def drawn(*shape: int) -> Tensor:
        return draw(*shape, device=device).to(dtype)

    y, add, norm = drawn(4, 30, 336), drawn(4, 336), module(nn.LayerNorm(336))
    attention = module(CrossAttention(336, 336, 2, 168))
    assert relative(ops.qkv(y, norm, attention, add), exact.qkv(y, norm, attention, add)) <= bound

    y, add, norm, layer = drawn(4, 30, 128), drawn(4, 128), module(nn.LayerNorm(128)), module(FeedForward(128))
    ways = [y.clone(), y.clone()]
    for way, stream in zip((ops, exact), ways, strict=True):
        out = torch.empty_like(stream)
        way.feed_forward(stream, add, norm, layer, 10**5, out)
        assert torch.equal(stream, y)
        way.feed_forward(stream, add, norm, layer, 10**5)
        assert torch.equal(out, stream)
    assert relative(ways[0] - y, ways[1] - y) <= 2 * bound  # two products, one after the other

    parts = [exact.measured(drawn(2, 54, c)) for c in (32, 64)]
    add, norm, weight = drawn(2, 96), module(nn.GroupNorm(32, 96)), module(nn.Conv2d(96, 48, 3)).weight
    found, wanted = (way.normed_conv(parts, norm, weight, (6, 9), add)[0].x for way in (ops, exact))
    assert relative(found, wanted) <= bound
    onto, bias = drawn(2, 54, 48), drawn(48)
    found, wanted = (way.normed_conv(parts, norm, weight, (6, 9), add, bias, onto)[0].x for way in (ops, exact))
    assert relative(found, wanted) <= bound

    x, scales, conv = drawn(6, 20, 64), (drawn(6, 64).float(), drawn(6, 64).float()), module(TemporalConv(64, 96))
    found, wanted = (way.temporal_conv(x, scales, conv, Shard(3)).x for way in (ops, exact))
    assert relative(found, wanted) <= bound
    found, wanted = (
        way.temporal_conv(x, scales, conv, Shard(3), torch.zeros_like(wanted), 0.3).x for way in (ops, exact)
    )
    assert relative(found, wanted) <= bound


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionEngine]:
    made: dict[str, DiffusionEngine] = {}

    def make(case: str) -> DiffusionEngine:
        if case not in made:
            path: Path = tmp_path_factory.mktemp("configs") / f"{case}.yaml"
            made[case] = small_model.made_up(small_model.write_config(path, case))
        return made[case]

    return make


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def test_the_network(made_up: Callable[[str], DiffusionEngine]) -> None:
    engine, frames, cpu = made_up("svd_small"), 3, torch.device("cpu")
    unet = engine.model.diffusion_model
    assert isinstance(unet, VideoUNet)
    assert unet.context_dim
    assert unet.vector_channels
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    x, noise = draw(6, 4, 8, 12, device=cpu), torch.linspace(-1, 1, 2).repeat_interleave(frames)
    c = {
        "concat": draw(6, unet.in_channels - 4, 8, 12, device=cpu),
        "crossattn": draw(2, 1, unet.context_dim, device=cpu).repeat_interleave(frames, 0),
        "vector": draw(6, unet.vector_channels, device=cpu),
    }
    with torch.inference_mode():
        wanted = engine.model(x, noise, c, num_video_frames=frames)
        whole = [engine.network(x, noise, c, num_video_frames=frames) for _ in range(2)]
        # In halves and in narrow parts; of another condition; what the fast path does not do, the module does.
        halves = engine.network.conditioned(c, frames, max_values=10**4, clip_by_clip=True)(x, noise)
        # Where one process is alone, guidance's clips are evaluated at once: each block is asked for once, not twice.
        checks: list[list[None]] = [[], [], []]
        ways: list[dict[str, Any]] = [{}, {"ranks": Ranks()}, {"clip_by_clip": True}]
        for asked, options in zip(checks, ways, strict=True):
            engine.network.conditioned(c, frames, check=lambda asked=asked: asked.append(None), **options)(x, noise)
        once, alone, twice = map(len, checks)
        assert (alone, twice) == (once, 2 * once)
        other = {**c, "crossattn": 2 * c["crossattn"]}
        changed = engine.network(x, noise, other, num_video_frames=frames)
        tokens = {**c, "crossattn": c["crossattn"].repeat(1, 2, 1)}
        several = engine.network(x, noise, tokens, num_video_frames=frames)
        wanted_changed = engine.model(x, noise, other, num_video_frames=frames)
        wanted_several = engine.model(x, noise, tokens, num_video_frames=frames)
        # Of the same input, the shallow blocks give the same on what the deep ones gave before; of another, nearly.
        cached = engine.network.conditioned(c, frames, cache_interval=3)
        reused = [cached(x, noise), cached(x, noise), cached(1.01 * x, noise), cached(1.01 * x, noise)]
        # The last one is not evaluated whole.
        known = engine.network.conditioned(c, frames, cache_interval=3, evaluations=4)
        last = [known(x, noise), known(x, noise), known(1.01 * x, noise), known(1.01 * x, noise)][-1]
    assert torch.equal(reused[0], reused[1])
    assert torch.equal(reused[0], whole[0])
    assert 0 < relative(reused[2], reused[3]) < 0.1
    assert torch.equal(last, reused[2])
    assert torch.equal(*whole)
    assert relative(whole[0], wanted) < 1e-5
    assert relative(halves, wanted) < 1e-5
    assert relative(changed, wanted_changed) < 1e-5
    assert relative(changed, whole[0]) > 1e-3
    assert torch.equal(several, wanted_several)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@torch.backends.cudnn.flags(allow_tf32=False)
def test_the_layers_for_training(ops_and_device: tuple[Ops, torch.device]) -> None:
    """With kernels, a block's output and all gradients are the readable layers'; without, the layers stay."""
    ops, device = ops_and_device
    transformer = SpatialVideoTransformer(64, 2, 32, depth=2, context_dim=16, ff_in=True)
    plain = Block(VideoResBlock(32, 48, 64), transformer).to(device).train()
    for i, module in enumerate(plain.modules()):
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 2  # of several channels each, or a bias before a norm would have no gradient
        for parameter in module.parameters(recurse=False):  # also of what is zero at first
            nn.init.normal_(parameter, 0.1, 0.2, generator=torch.Generator(device).manual_seed(i))
    fused, frames = copy.deepcopy(plain), 3
    if ops is for_device(device):
        fuse_layers(fused, frames)
    assert (type(fused[1]) is not SpatialVideoTransformer) == ops.has_triton
    fused.use_checkpoint = True
    leaf, emb, context = draw(6, 32, 3, 4, device=device), draw(6, 48, device=device), draw(2, 1, 16, device=device)
    given = context.repeat_interleave(frames, 0), frames, torch.tensor([[0, 0, 0], [0, 1, 0]], device=device)
    found: list[dict[str, Tensor | None]] = []
    for block in plain, fused:
        x, e = leaf.clone().requires_grad_(), emb.clone().requires_grad_()
        out = block(x.to(memory_format=torch.channels_last), e, *given)
        (out * draw(*out.shape, device=device)).sum().backward()
        found.append({"": out.detach(), "x": x.grad, "e": e.grad} | {n: p.grad for n, p in block.named_parameters()})
    for name, wanted in found[0].items():
        got = found[1][name]
        assert (got is None) == (wanted is None), name  # queries and keys of a single token have none
        assert got is None or wanted is None or relative(got, wanted) < 2e-3, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, and no other has CUDA graphs")
def test_steps_of_a_training_that_are_recorded(made_up: Callable[[str], DiffusionEngine]) -> None:
    """The fourth step, a replay, leaves the gradients of a call: of other inputs than were recorded, and weights."""
    device = torch.device("cuda")
    network = copy.deepcopy(made_up("svd_small").model).to(device).train().requires_grad_(True)
    unet: Any = network.diffusion_model
    for i, parameter in enumerate(unet.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator(device).manual_seed(i))
    parameters = list(unet.parameters())
    recorded = GraphedNetwork(network, parameters)
    for step in range(4):
        x, noise = draw(3, 4, 8, 16, device=device, shift=float(step)), torch.full((3,), 0.1 * step, device=device)
        cond = {
            "concat": draw(3, unet.in_channels - 4, 8, 16, device=device),
            "crossattn": draw(1, 1, unet.context_dim, device=device).repeat(3, 1, 1),
            "vector": draw(3, unet.vector_channels, device=device),
        }
        found: list[list[Tensor]] = []
        for way in network, recorded:
            out = way(x, noise, cond, num_video_frames=3)
            if not recorded.zero():
                network.zero_grad()
            out.square().mean().backward()
            found.append([out.detach(), *(p.grad.clone() for p in parameters if p.grad is not None)])
            del out  # whose graph has nodes of the stream of calls
        size = sum(float(value.norm()) for value in found[0]) / len(found[0])
        assert all((one - other).norm() < 1e-3 * (one.norm() + 0.01 * size) for one, other in zip(*found, strict=True))
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(0.99)
    assert recorded.zero()


@pytest.mark.parametrize("case", ["sv4d_small", "sv4d2_small"])
@pytest.mark.parametrize("size", [(8, 12), (6, 6)])  # 24 and 9 pixels at the deepest level, of which 4 views divide one
def test_the_network_of_several_views(
    made_up: Callable[[str], DiffusionEngine], case: str, size: tuple[int, int]
) -> None:
    engine, times, views, cpu = made_up(case), 3, 4, torch.device("cpu")
    unet, frames = engine.model.diffusion_model, times * views
    assert isinstance(unet, UNet)
    assert unet.vector_channels
    noise = torch.linspace(-1, 1, 2).repeat_interleave(frames)
    x, concat = draw(2 * frames, 4, *size, device=cpu), draw(2 * frames, 4, *size, device=cpu)
    c = {
        "concat": concat.flip(0),
        "crossattn": draw(2, times, small_model.ARCH["embed_dim"], device=cpu),
        "vector": draw(2 * frames, unet.vector_channels, device=cpu),
        "cond_view": draw(2 * views, 4, 8, 12, device=cpu),
    }
    checks: list[None] = []
    with torch.inference_mode():
        assert engine.network.supports(c)
        wanted = engine.model(x, noise, c, num_video_frames=frames)
        whole = engine.network(x, noise, c, num_video_frames=frames)
        settings = {"max_values": 10**4, "clip_by_clip": True, "check": lambda: checks.append(None)}
        parts = engine.network.conditioned(c, frames, **settings)(x, noise)
    assert relative(whole, wanted) < 1e-5
    assert relative(parts, wanted) < 1e-5
    assert len(checks) > 10


@pytest.mark.parametrize("case", ["svd_small", "svd_image_decoder_small"])
def test_the_decoder_in_parts(
    made_up: Callable[[str], DiffusionEngine], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    engine = made_up(case)
    decoder, z = engine.first_stage_model.decoder, draw(4, 4, 8, 12, device=torch.device("cpu"))
    told: list[tuple[int, int]] = []
    with torch.inference_mode():
        wanted = decoder(z, 4)
        for max_values in (2**28, 2**17, 1):
            assert relative(decode(decoder, z, max_values, lambda *at: told.append(at)), wanted) < 1e-5
        for held in (0, 10**4, 5 * 10**4, 10**9):  # values on the device; the rest is in the processor's memory
            for max_values in (2**28, 2**17):
                assert torch.equal(decode(decoder, z, max_values, max_held=held), decode(decoder, z, max_values))
        for at_once in (None, 1, 2, 50):
            assert relative(engine.decode_clip(z, at_once), engine.decode(z, 4)) < 1e-5
        stored = decode(decoder, z, 1)
        monkeypatch.setattr("sgm.fast.decoder._MAX_STORED", 0)  # as of large clips: stored where the buffer has room
        assert torch.equal(decode(decoder, z, 1), stored)
    steps = told[: len(told) // 3]
    assert steps == [(i, len(steps) - 1) for i in range(len(steps))]


def test_half_precision_loses_no_more_than_the_modules(made_up: Callable[[str], DiffusionEngine]) -> None:
    decoder = made_up("svd_small").first_stage_model.decoder
    z = draw(3, 4, 8, 12, device=torch.device("cpu"))
    with torch.inference_mode():
        wanted = decoder(z, 3)
        decoder.bfloat16()
        ours, theirs = decode(decoder, z.bfloat16()), decoder(z.bfloat16(), 3)
        decoder.float()
    assert relative(ours, wanted) < 1.1 * relative(theirs, wanted)
