"""Whatever lies in the place of weights costs a sentence: no other exception, no memory, and nothing runs."""

from __future__ import annotations

import codecs
import copy
import json
import os
import random
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sgm.errors import printable
from sgm.formats.files import WeightsError, open_tensors
from sgm.installed import recognise
from tests.test_checkpoints import passengers

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


def message_of(open_it: Callable[[], Any], path: Path) -> str:
    """The message of the WeightsError, "" where the file opens; any other exception is a failure."""
    try:
        open_it()
    except WeightsError as error:
        message = str(error)
        assert str(path) in message
        assert message == printable(message, 3000)
        assert len(message) < 2100
        return message
    return ""


def read_all(path: Path) -> None:
    file = open_tensors(path)
    try:
        for name in file.layout:
            file.read(name)
    finally:
        file.close()


# Files that are no files, names that are no names.


def whole(folder: Path) -> Path:
    """A diffusers folder with one tensor in each part."""
    for part in ("unet", "vae", "image_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    return folder


@POSIX
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.symlink(tmp_path / "gone", tmp_path / "dead")
    said = {
        tmp_path / "pipe": "is no file that can be read as weights, but a folder, pipe or device",
        tmp_path: "is no file that can be read as weights, but a folder, pipe or device",
        Path("/dev/zero"): "is no file that can be read as weights",
        tmp_path / "loop": "cannot be used (Too many levels",
        tmp_path / "dead": f"is a link to {tmp_path / 'gone'}, where nothing lies",
        tmp_path / ("a" * 300): "cannot be used (File name too long)",
        tmp_path / "a\0b": "cannot be used",
        tmp_path / "\ud800": "cannot be used",
        tmp_path / "none" / "a": "There are no weights at",
    }
    for path, words in said.items():
        with pytest.raises(WeightsError) as caught:
            open_tensors(path)
        assert words in str(caught.value)
    for name in ("pipe", "loop", "dead"):
        folder = whole(tmp_path / f"with {name}")
        (folder / "unet" / "model.safetensors").unlink()
        (tmp_path / name).rename(folder / "unet" / "model.safetensors")
        assert message_of(lambda folder=folder: recognise(folder), folder / "unet" / "model.safetensors")


@POSIX
@pytest.mark.parametrize("kind", ["pipe", "large", "loop", "link"])
def test_an_index_is_a_file_of_a_bounded_size(tmp_path: Path, kind: str) -> None:
    folder = whole(tmp_path / "model")
    (folder / "unet" / "model.safetensors").unlink()
    index = folder / "unet" / "model.safetensors.index.json"
    if kind == "pipe":
        os.mkfifo(index)
    elif kind == "large":
        with index.open("wb") as file:
            file.truncate(5 << 30)
    elif kind == "loop":
        index.symlink_to(index)
    else:
        index.symlink_to("/dev/zero")
    message = message_of(lambda: recognise(folder), index)
    assert ("Too many levels" if kind == "loop" else "it is no file of at most 16 MB") in message


@pytest.mark.parametrize(
    "index",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "{}",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 7, "b": "c"}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "."}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "/dev/zero"}}',
        '{"weight_map": {"a": "../vae/model.safetensors"}}',
        '{"weight_map": {"a": "a\\u0000b"}}',
        '{"weight_map": {"a": "\\ud800"}}',
        '{"weight_map": {"a": "\\u001b[31m"}}',
        json.dumps({"weight_map": {"a": "a" * 300}}),
        json.dumps({"weight_map": {"a": "a" * 10**6}}),
        json.dumps({"weight_map": {"a": "m-1-of-999999.safetensors"}}),
        '{"weight_map": {"a": "m-1-of-' + "9" * 5000 + '.safetensors"}}',
        b"\xff\xfe",
    ],
)
def test_an_index_that_is_wrong_is_said(tmp_path: Path, index: str | bytes) -> None:
    folder = whole(tmp_path / "model")
    (folder / "unet" / "model.safetensors").unlink()
    path = folder / "unet" / "model.safetensors.index.json"
    path.write_bytes(index if isinstance(index, bytes) else index.encode())
    assert message_of(lambda: recognise(folder), folder / "unet")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file, quantised for other programs, .* take the .safetensors file"),
        (b"\x1f\x8b\x08" + bytes(100), "is a packed archive"),
        (b'{"weight_map": {}}', "is text in JSON"),
        (b"", "is empty"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, start: bytes, words: str) -> None:
    (tmp_path / "model").write_bytes(start)
    with pytest.raises(WeightsError, match=words):
        open_tensors(tmp_path / "model")


def test_the_old_format_of_torch_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"is of torch.save's format before torch 1\.6 .load it .* and save it anew"):
        open_tensors(tmp_path / "a.pt")


# Headers of .safetensors.


def safetensors(path: Path, entries: Any, data: bytes = b"") -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_dtypes_are_said_to_be_quantised(tmp_path: Path, kind: str) -> None:
    path = safetensors(tmp_path / "a", {"w": {"dtype": kind, "shape": [4, 4], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(WeightsError, match=f"holds w as {kind}: it is quantised, which is not supported. Take"):
        open_tensors(path)


@pytest.mark.parametrize("kind", ["U16", "U32", "U64", "C64", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_dtypes_of_newer_files_may_lie_beside_the_weights(tmp_path: Path, kind: str) -> None:
    size = {"U16": 2, "U32": 4}.get(kind, 1 if kind.startswith("F8") else 8)
    entry = {"dtype": kind, "shape": [3], "data_offsets": [0, 3 * size]}
    file = open_tensors(safetensors(tmp_path / "a", {"w": entry}, bytes(3 * size)))
    assert (file.read("w").dtype, tuple(file.read("w").shape)) == file.layout["w"]
    file.close()


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2], None),
        ([2], "08"),
        ([2], ["0", "8"]),
        ([2], [0, 8.0]),
        ([2], [-1, 7]),
        ([2], [True, 9]),
        ([2], [0]),
        ([2], [8, 0]),
        ([2], [0, 10**400]),
        ([-1, 8], [0, -8]),
        (["2"], [0, 8]),
        ("2", [0, 8]),
        (2, [0, 8]),
        ([True, 2], [0, 8]),
        ([2.0], [0, 8]),
        ([1 << 62, 1 << 62, 0], [0, 0]),
        ([1] * 1000 + [2], [0, 8]),
        ([10**400], [0, 4 * 10**400]),
        ([0], [0, -1]),
    ],
)
def test_numbers_of_a_header_are_checked(tmp_path: Path, shape: Any, offsets: Any) -> None:
    path = safetensors(tmp_path / "a", {"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(8))
    assert message_of(lambda: open_tensors(path), path)


def test_a_name_of_ten_megabytes_is_shortened_and_cleaned(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
    path = safetensors(tmp_path / "a", {"\x1b[2J" + "a" * 10**7: entry}, bytes(8))
    message = message_of(lambda: open_tensors(path), path)
    assert len(message) < 700
    assert "\\x1b[2Jaaa" in message


# Damage by chance.

ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**62,
    2**64,
    10**400,
    1.5,
    float("nan"),
    "",
    "ab",
    "\ud800",
    [],
    [0],
    {},
    "F4",
    "U8",
]
FORBIDDEN = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "pickle.", "ctypes.", "marshal.", "shutil.")
events: list[Any] = []
watching = threading.local()


def watch(event: str, arguments: tuple) -> None:
    """Notes what must not happen, where this thread watches."""
    if getattr(watching, "on", False):
        written = event == "open" and isinstance(arguments[1], str) and arguments[1].strip("rb") != ""
        if written or event.startswith(FORBIDDEN):
            events.append((event, arguments))


@pytest.fixture(scope="module")
def watcher() -> None:
    for name in ("raw_unicode_escape", "cp437"):  # codecs of Python's own, for text in old pickles and archives
        codecs.lookup(name)
    sys.addaudithook(watch)  # which stays until the end of the tests


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Fails where a module is imported, a program started, a file written or a warning given inside."""
    modules = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watching.on = True
        try:
            yield
        finally:
            watching.on = False
    assert events == []
    assert set(sys.modules) == modules


def memory() -> float:
    """The most memory that this process has had, in MB; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def damaged_json(chance: random.Random, value: Any) -> Any:
    """The value with one of its parts changed, left out, put into a list, or replaced by another part."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    value = copy.deepcopy(value)
    walk(value)
    (owner, key), (other, name) = chance.choice(places), chance.choice(places)
    match chance.randrange(5):
        case 0:
            del owner[key]
        case 1:
            owner[key] = [owner[key]]
        case 2:
            owner[key] = copy.deepcopy(other[name])
        case 3 if isinstance(owner[key], int):
            owner[key] += chance.choice([-8, -1, 1, 4, 8])
        case _:
            owner[key] = chance.choice(ODD)
    return value


def damaged_bytes(chance: random.Random, data: bytes, spare: bytes) -> bytes:
    """The data with some bytes changed, cut out, doubled, or replaced by one of `spare`."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice([1, 1, 2, 5, 20]))
        match chance.randrange(5):
            case 0:
                changed[at:end] = chance.randbytes(end - at)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end]
            case 3 if chance.random() < 0.2:
                del changed[at:]
            case _:
                changed[at:end] = bytes([chance.choice(spare)])
    return bytes(changed)


def refused(path: Path) -> bool:
    with nothing_happens():
        return message_of(lambda: read_all(path), path) != ""


def test_a_thousand_damaged_headers(tmp_path: Path, watcher: None) -> None:
    good = save({"a": torch.zeros(2, 3), "b": torch.zeros(0), "c": torch.zeros((), dtype=torch.float16)}, {"k": "v"})
    length = int.from_bytes(good[:8], "little")
    entries, data, path = json.loads(good[8 : 8 + length]), good[8 + length :], tmp_path / "a.safetensors"
    count, before, chance = 0, memory(), random.Random(0)
    for i in range(1000):
        if i % 2:
            safetensors(path, damaged_json(chance, entries), data)
        else:
            path.write_bytes(damaged_bytes(chance, good, b'{}[],:"0\xff\x80e-\\'))
        count += refused(path)
    assert 700 < count < 1000
    assert memory() - before < 64


def test_a_thousand_damaged_pickles(tmp_path: Path, watcher: None) -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.nn.Parameter(torch.zeros(3).half()), "c": torch.tensor([1])}
    names = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\n__import__\n", b"ctorch\nSize\n", b"cos\npath\n"]
    path, opcodes = tmp_path / "a.ckpt", bytes(range(256)) + b"cR\x81\x93b\x82\x83\x84Q(tjhrsu\x96\x8b" * 10
    goods = []
    for content, protocol in (({"state_dict": state}, 2), (state, 4), ({**passengers(), "model": state}, 2)):
        torch.save(content, path, pickle_protocol=protocol)
        assert not refused(path)
        with zipfile.ZipFile(path) as archive:
            goods.append({entry.filename: archive.read(entry) for entry in archive.infolist()})
    count, before, chance = 0, memory(), random.Random(0)
    for i in range(1000):
        good = goods[i % 3]
        listing = next(name for name in good if name.endswith("data.pkl"))
        data = damaged_bytes(chance, good[listing], opcodes)
        if i % 7 == 0:
            at = chance.randrange(len(data) + 1)
            data = data[:at] + chance.choice(names) + data[at:]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**good, listing: data}.items():
                archive.writestr(name, content)
        if i % 5 == 0:  # the archive's own structure
            path.write_bytes(b"PK\x03\x04" + damaged_bytes(chance, path.read_bytes()[4:], opcodes))
        count += refused(path)
    assert 500 < count < 1000
    assert memory() - before < 64
