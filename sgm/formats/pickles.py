"""Pickles of torch.save, read without running them: nothing that they name is imported or called.

Where Python's own unpickler would call a function, this one keeps the tensor's place in the file, or a stand-in for an
object that is no tensor. Its work and its memory are bounded by the pickle's length: no step takes longer because what
it takes was made before, and is long.
"""

from __future__ import annotations

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which torch.save writes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sgm.formats.tensor_file import LARGEST_LENGTH, Shape, is_shape

_LONGEST_NAME = 1000
_MOST_STEPS = 1_000_000  # opcodes, a second's work; a training's checkpoint with its optimizer has some 100,000

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_UNUSUAL = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_wrapper_subclass": "wrapped",
    "torch._utils._rebuild_device_tensor_from_numpy": "foreign",
    "torch._utils._rebuild_xla_tensor": "foreign",
}
# Of Python's own modules, those whose names in a pickle are mere values. What names another could be meant to do harm.
_HARMLESS_MODULES = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "typing", "uuid")
_HARMLESS = {
    *(f"builtins.{name}" for name in ("object", "list", "tuple", "dict", "set", "frozenset", "slice", "range")),
    *(f"builtins.{name}" for name in ("bool", "int", "float", "complex", "str", "bytes", "bytearray", "type")),
    *("copyreg._reconstructor", "_codecs.encode", "_operator.getitem", "functools.partial", "types.SimpleNamespace"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.dtype", "numpy.ndarray"),
    *("torch.device", "torch.serialization._get_layout", "torch.storage._load_from_bytes"),
}


class CodeError(ValueError):
    """A pickle that would call a function which is none of those that make tensors and plain values."""


class Global(str):
    """The full name of a class, function or dtype."""


class Other(dict):
    """Stand-in for an object that is no tensor, with its entries if it is a dict. kind: the name of its class."""

    kind = ""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: its first byte there, its shape, and strides as torch's, in values."""

    dtype: torch.dtype
    start: int
    shape: Shape
    stride: Shape
    kind = "tensor"

    @property
    def span(self) -> int:
        """The number of values from the tensor's first to its last, those between them included."""
        return (
            0 if 0 in self.shape else 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        )


@dataclass(frozen=True)
class Unusual:
    """A tensor that is not plain values with strides. kind: "sparse", "quantised", ..."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    """A row of values in the file; start and size in bytes."""

    dtype: torch.dtype
    start: int
    size: int


Place = Callable[[str], tuple[int, int]]  # a storage's key -> its first byte in the file, and its size in bytes


def unpickle(data: bytes, place: Place) -> Any:
    """What a pickle describes: plain values, `Stored` and `Unusual` tensors, `Global` names and `Other` objects.

    Raises CodeError for a pickle that asks for more than that, any other exception for one that is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if step > _MOST_STEPS:
            raise ValueError(f"it lists its content in more than {_MOST_STEPS:,} steps")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINFLOAT":
                stack.append(argument)
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPERSID":
                stack.append(_storage(stack.pop(), place))
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_named(stack.pop(), name))
            case "REDUCE" | "NEWOBJ":
                args = stack.pop()
                stack.append(_made(stack.pop(), args))
            case "NEWOBJ_EX":
                _, args = stack.pop(), stack.pop()
                stack.append(_made(stack.pop(), args))
            case "BUILD":
                stack.pop()  # the object's attributes
            case "NEWFALSE" | "NEWTRUE" | "NONE":
                stack.append({"NEWFALSE": False, "NEWTRUE": True, "NONE": None}[opcode.name])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "LIST" | "FROZENSET":
                stack.append(since_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_filled({}, since_mark()))
            case "SETITEM":
                items = stack[-2:]
                del stack[-2:]
                _filled(stack[-1], items)
            case "SETITEMS":
                items = since_mark()
                _filled(stack[-1], items)
            case "APPEND":
                _extended(stack, [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                _extended(stack, since_mark())
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "LONG4" | "SHORT_BINSTRING" | "BINSTRING" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "BINUNICODE8" | "INT" | "LONG" | "FLOAT" | "STRING" | "UNICODE":
                stack.append(argument)
            case name:
                raise ValueError(f"its step {name} is not one of torch.save's")
    raise EOFError("it ends too early")


def _named(module: str, name: str) -> Any:
    """The value, dtype or name that stands for `module.name`. Raises CodeError for what could be meant to do harm."""
    if len(module) + len(name) > _LONGEST_NAME:
        raise ValueError(f"it names what has more than {_LONGEST_NAME} letters")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = Global(f"{module}.{name}")
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names and root not in _HARMLESS_MODULES and full not in _HARMLESS:
        raise CodeError(full)
    return _DTYPES.get(full, full)


def _storage(identity: Any, place: Place) -> _Storage:
    kind, storage, key, _, count = identity
    dtype = _STORAGES[storage.rpartition(".")[2]]
    start, size = place(key)
    if kind != "storage" or type(count) is not int or not 0 <= count * dtype.itemsize <= size:
        raise ValueError("a tensor's storage is not as long as it should be")
    return _Storage(dtype, start, count * dtype.itemsize)


def _made(name: Any, args: Any) -> Any:
    """What stands for the result of a call, or for a new object of a class."""
    if not isinstance(name, Global) or not isinstance(args, tuple):
        raise ValueError("it calls what has no name")
    match name:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            return Unusual("lazily negated") if any(args[6:7]) else _tensor(*args[:4])
        case "torch._utils._rebuild_tensor_v3":
            if args[6] is torch.float4_e2m1fn_x2:
                return Unusual("quantised")
            return Unusual("lazily negated") if any(args[7:8]) else _tensor(*args[:4], dtype=args[6])
        case (
            "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch._utils._rebuild_device_tensor_from_cpu_tensor"
            | "torch.nn.parameter.Parameter"
        ) if args:
            return args[0]
        case "torch._tensor._rebuild_from_type" | "torch._tensor._rebuild_from_type_v2":
            if not (isinstance(args[0], Global) and args[0].startswith("torch._utils.")):
                raise CodeError(args[0])
            return _made(args[0], args[2])
        case "builtins.bytes" | "builtins.bytearray" if isinstance(args[0], int):
            raise ValueError("it asks for memory without content, as torch.save never does")
        case "torch.Size":
            return args[0]
        case "collections.OrderedDict" if not args:
            return {}
    if name in _UNUSUAL:
        return Unusual(_UNUSUAL[name])
    function = name.rpartition(".")[2].lstrip("_")[:1].islower()  # rather than a class
    if function and name not in _HARMLESS and name.partition(".")[0] not in _HARMLESS_MODULES:
        raise CodeError(name)
    other = Other()
    other.kind = str(name)
    return other


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> Stored:
    """The place of a tensor, checked against that of its storage."""
    dtype = dtype or storage.dtype
    if not is_shape(shape) or len(shape) != len(stride):
        raise ValueError("a tensor's shape is none, or has more or fewer lengths than strides")
    if not all(type(number) is int and 0 <= number < LARGEST_LENGTH for number in (offset, *stride)):
        raise ValueError("a tensor's place or strides are no numbers of values")
    stored = Stored(dtype, storage.start + offset * dtype.itemsize, tuple(shape), tuple(stride))
    if stored.span and (offset + stored.span) * dtype.itemsize > storage.size:
        raise ValueError("a tensor reaches beyond the end of its storage")
    return stored


def _filled(target: Any, items: list[Any]) -> Any:
    """A dict with items [key, value, key, value, ...] added. Keys that could take long to compare lose their names."""
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("it sets items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        simple = isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 31)
        target[key if simple else object()] = value
    return target


def _extended(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif not isinstance(stack[-1], Other):
        raise ValueError("it appends to what is no list")
