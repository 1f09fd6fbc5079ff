"""Files of torch.save are read as torch.load reads them, without running or mapping anything in them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgm.formats.files import WeightsError, open_tensors


class Reduced:
    """What a pickle would call, and with what."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.parts = function, args

    def __reduce__(self) -> tuple:
        return self.parts


class Settings:
    """A program's own object, as checkpoints carry them along."""

    def __init__(self) -> None:
        self.rate = 1e-5


def saved(content: object, path: Path, **choices: Any) -> Path:
    torch.save(content, path, **choices)
    return path


def read_all(path: Path) -> dict[str, Tensor]:
    file = open_tensors(path)
    values = {name: file.read(name) for name in file.layout}
    assert all((v.dtype, tuple(v.shape)) == file.layout[name] for name, v in values.items())
    file.close()
    return values


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """The archive with each entry as `change(name, content)` has it, those with None left out; and with `more`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename.partition("/")[2], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
        root = old.infolist()[0].filename.partition("/")[0]
        for name, content in more.items():
            new.writestr(f"{root}/{name.replace('__', '/').replace('_pkl', '.pkl')}", content)
    return target


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(4, 6, 3)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
    dtypes += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool]
    return {
        "whole": whole,
        "view": whole[1:3, ::2],
        "tied": whole,
        "transposed": whole.permute(2, 0, 1),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.5]).expand(5, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(3)),
        "buffer": nn.Parameter(torch.randn(3), requires_grad=False),
        "tagged": tagged(torch.randn(3)),
        **{str(dtype): (torch.randn(7).abs() * 4).to(dtype) for dtype in dtypes},
    }


def tagged(value: Tensor) -> Tensor:
    value.note = "an attribute, which torch saves in a way of its own"  # pyright: ignore
    return value


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_of_every_kind_equal_those_of_torch_load(tmp_path: Path, protocol: int) -> None:
    path = saved(state(), tmp_path / "a.ckpt", pickle_protocol=protocol)
    ours, theirs = read_all(path), torch.load(path, weights_only=False)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert value.is_contiguous()
        assert value.view(-1).view(torch.uint8).equal(theirs[name].detach().contiguous().view(-1).view(torch.uint8)), (
            name
        )


def test_a_module_s_state_dict_and_big_endian_values_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    path = saved(module.state_dict(), tmp_path / "a.ckpt")
    ours = read_all(path)
    assert all(ours[name].equal(value) for name, value in module.state_dict().items())

    def swapped(name: str, content: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        if not name.startswith("data/"):
            return content
        return np.frombuffer(content, "<i8" if len(content) == 8 else "<f4").byteswap().tobytes()

    big = read_all(rewritten(path, tmp_path / "big.ckpt", swapped))
    assert all(big[name].equal(value) for name, value in module.state_dict().items())


def passengers() -> dict[Any, Any]:
    """What other programs' checkpoints hold beside the weights."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    return {
        "epoch": 3,
        "optimizer_states": [
            {"state": {0: moments}, "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0]}]}
        ],
        "lr_schedulers": [Settings()],
        "hyper_parameters": Settings(),
        "callbacks": {Settings: {"best": np.float32(0.5), "path": Path("runs")}},
        "loops": defaultdict(
            list, {"a": [1, 2.5, None, True, b"bytes", bytearray(b"more"), {1, 2}, frozenset([3]), 1j]}
        ),
        "random": np.random.default_rng(0).bit_generator.state,
        "rng": np.arange(3),
        ("a", "tuple"): slice(1, 2),
        "huge": 1 << 5000,
        "sizes": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided],
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "ema": {**state, "decay": torch.tensor(0.9)}},
        lambda state: {"module": state, "ds_version": "0.14"},
        lambda state: {"model": state, "step": torch.tensor(5), "ema": state},
        lambda state: {"ema": dict(state), "model": state},
        lambda state: {"checkpoint": {"net": OrderedDict(state)}, "x": torch.zeros(1)},
        lambda state: {"state_dict": {"module": state}},
        lambda state: {"state_dict": {}, "model": state},
        lambda state: {**state, "step": 7},
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_the_dict_that_holds_the_tensors_is_taken_whatever_lies_beside_it(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]], protocol: int
) -> None:
    weights = {f"weight{i}": torch.randn(2) for i in range(5)}
    ours = read_all(saved({**passengers(), **wrap(weights)}, tmp_path / "a.pt", pickle_protocol=protocol))
    assert ours.keys() == weights.keys()
    assert all(ours[name].equal(value) for name, value in weights.items())


A = torch.ones(2, 2)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "system": (lambda: {"a": A, "b": Reduced(os.system, "touch ran")}, r"needs (posix|nt)\.system to be opened"),
    "eval": (lambda: {"a": A, "b": Reduced(eval, "open('ran', 'w')")}, r"needs builtins\.eval to be opened"),
    "popen": (lambda: {"b": Reduced(subprocess.Popen, ["touch", "ran"])}, r"needs subprocess\.Popen to be opened"),
    "import": (lambda: {"a": A, "b": Reduced(__import__, "antigravity")}, r"needs builtins\.__import__ to be opened"),
    "hub": (lambda: {"a": A, "b": Reduced(torch.hub.load, "some/where")}, r"needs torch\.hub\.load to be opened"),
    "unmapped": (lambda: {"a": A, "b": Reduced(pickle.loads, b"N.")}, r"needs pickle\.loads to be opened"),
    "bytes": (lambda: {"a": A, "b": Reduced(bytearray, 12 << 30)}, "asks for memory without content"),
    "only bytes": (lambda: Reduced(bytearray, 12 << 30), "asks for memory without content"),
    "sparse": (lambda: {"a": A.to_sparse()}, "holds a as a sparse tensor; weights are plain tensors of fp16, bf16 or"),
    "quantised": (lambda: {"a": torch.quantize_per_tensor(A, 0.1, 0, torch.qint8)}, "holds a as a quantised tensor"),
    "meta": (lambda: {"a": A.to("meta")}, "holds a as a meta tensor"),
    "nested": (lambda: {"a": torch.nested.nested_tensor([A, A])}, "holds a as a nested tensor"),
    "negated": (lambda: {"a": torch.ones(2, dtype=torch.complex64).conj().imag}, "holds a as a lazily negated tensor"),
    "a module": (lambda: nn.Linear(2, 2), r"holds a torch\.nn\.modules\.linear\.Linear, but a checkpoint is a dict"),
    "a tensor": (lambda: A, "holds a tensor, but a checkpoint is a dict"),
    "no tensors": (lambda: {"epoch": 3, "\x1b[31m" * 100: 4}, r"holds no tensors \(epoch, \\x1b"),
    "a name": (lambda: {"\x1b]0;" + "a" * 10**6: A.to_sparse()}, r"holds \\x1b\]0;aaaa.*… ?a+ as a sparse"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_checkpoint_is_said_and_nothing_runs(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = REFUSED[kind]
    path = saved(make(), tmp_path / "a.ckpt")
    before, modules = set(tmp_path.iterdir()), set(sys.modules)
    with pytest.raises(WeightsError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert set(tmp_path.iterdir()) == before
    assert set(sys.modules) == modules


def test_archives_of_other_kinds_are_refused(tmp_path: Path) -> None:
    def fails(
        words: str, change: Callable[[str, bytes], bytes | None] = lambda name, data: data, **more: bytes
    ) -> None:
        with pytest.raises(WeightsError, match=words):
            open_tensors(rewritten(path, tmp_path / "b.ckpt", change, **more))

    path = saved({"a": torch.ones(3)}, tmp_path / "a.ckpt")
    fails("is a TorchScript archive, which holds a program", constants_pkl=b"x")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/constants.pkl", bytes(1000))
    with pytest.raises(WeightsError, match="is a TorchScript archive, which holds a program"):
        open_tensors(tmp_path / "b.ckpt")
    fails("is a TorchScript archive, which holds a program", code____torch__=b"x")
    # The pickle that torch reads is the one in the archive's own folder.
    fails(
        "is a zip archive of .*, not a PyTorch checkpoint", lambda n, d: None if n == "data.pkl" else d, adata_pkl=b"N."
    )
    fails("cannot be read as a PyTorch checkpoint .*byte order", lambda n, d: b"middle" if n == "byteorder" else d)
    fails(
        r"cannot be read as a PyTorch checkpoint .its entry data.0 is missing",
        lambda n, d: None if n == "data/0" else d,
    )
    fails("storage is not as long as it should be", lambda n, d: d[:8] if n == "data/0" else d)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1 << 18), "b": torch.ones(1 << 18)}, tmp_path / "a.ckpt")
    file = open_tensors(path)
    with path.open("r+b") as half:
        half.truncate(1 << 20)
    with pytest.raises(WeightsError, match="ended while it was read: it has been cut short meanwhile"):
        file.read("b")
    file.close()


def pickled(path: Path, data: bytes) -> Path:
    """A checkpoint of this pickle, and of one storage of 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(16))
    return path


MEGABYTE = 1 << 20
LONG = MEGABYTE.to_bytes(4, "little")
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor(offset: bytes, shape: bytes, stride: bytes) -> bytes:
    """The pickle of {"w": a tensor}."""
    parts = STORAGE + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + parts + b"s."


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def test_the_smallest_checkpoint_opens(tmp_path: Path) -> None:
    whole = tensor(number(1), b"(K\x03t", b"(K\x01t")
    assert read_all(pickled(tmp_path / "a.ckpt", whole))["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "numbers",
    [
        (number(2), b"(K\x03t", b"(K\x01t"),  # beyond the end
        (number(-1), b"(K\x03t", b"(K\x01t"),
        (number(1 << 64), b"(K\x03t", b"(K\x01t"),
        (b"N", b"(K\x03t", b"(K\x01t"),
        (b"\x88", b"(K\x03t", b"(K\x01t"),
        (number(0), b"(" + number(1 << 62) * 2 + b"K\x00t", b"(K\x01K\x01K\x01t"),
        (number(0), b"(" + number(-3) + b"t", b"(K\x01t"),
        (number(0), b"(K\x03t", b"(" + number(-1) + b"t"),
        (number(0), b"(K\x03t", b"(" + number(1 << 61) + b"t"),
        (number(0), b"(K\x03K\x01t", b"(K\x01t"),
        (number(0), b"N", b"(K\x01t"),
        (number(0), b"X\x01\x00\x00\x003", b"(K\x01t"),
        (number(0), b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"),
    ],
)
def test_every_number_of_a_tensor_is_checked(tmp_path: Path, numbers: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(WeightsError, match="cannot be read as a PyTorch checkpoint"):
        open_tensors(pickled(tmp_path / "a.ckpt", tensor(*numbers)))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]" + b"q\x00(h\x00h\x00e" * 3 + b"0" * 40 + b".",
        b"\x80\x02)" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60)) + b"}q\xffh\x3aNs.",  # doubles: a key
        b"\x80\x02K\x01r\xff\xff\xff\xff.",  # place 4,294,967,295 of the memo
        b"\x80\x04\x96" + (10**13).to_bytes(8, "little") + b".",  # bytearray8
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # a long of 2 GB
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame
        b"\x80\x02" + b"]" * 30_000 + b".",
        b"\x80\x02" + b"\x8f" * 30_000 + b".",
        b"\x80\x02" + b"(" * 9_000 + b")" * 9_000 + b".",
        b"\x80\x02)" + b"\x85" * 20_000 + b".",
        b"\x80\x02\x82\x01.",  # a class by its number in the registry of extensions
        # What is long is made once and taken often: names, arguments, strides.
        b"\x80\x02X" + LONG + b"a" * MEGABYTE + b"q\x00" + b"h\x00h\x00\x93" * 4000 + b".",
        b"\x80\x02](" + b"NN\x86" * 4000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 4000 + b".",
        b"\x80\x02(" + b"N" * 20_000 + b"tq\x00" + b"ctorch._utils\n_rebuild_tensor\nh\x00R" * 4000 + b".",
        b"\x80\x02(" + b"K\x01" * 4000 + b"tq\x00" + b"ctorch\nSize\nh\x00\x85R" * 4000 + b".",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type\nq\x00N\x86" + b"h\x00NN\x87" * 9 + b"R.",
        b"\x80\x02}." + bytes(10),
        b"",
    ],
)
def test_a_pickle_cannot_take_memory_at_will(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgm.formats.pickles._MOST_STEPS", 20_000)
    path = pickled(tmp_path / "a.ckpt", data)
    start = time.process_time()
    with pytest.raises(WeightsError):
        open_tensors(path)
    assert time.process_time() - start < 5
    tracemalloc.start()
    with pytest.raises(WeightsError):
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_list_of_entries_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path, size = tmp_path / "a.ckpt", 17 << 20
    end = b"PK\x05\x06" + bytes(8) + size.to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(2)
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(4 + size)
        file.seek(0, 2)
        file.write(end)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"damaged or cut short zip archive .a list of entries of 18 MB"):
        open_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
