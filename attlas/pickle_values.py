"""What a pickle of torch.save may name, and the plain value that is made of it.

Here a name is a piece of text. What may be named stands in `KNOWN`, each with a function of ours that takes the
arguments apart and makes one plain value of them; the comments say why none can do harm. Everything else that a pickle
can ask for is refused, or, when asked to, left out. `pickle_machine` runs the pickle, `torch_files` reads the file.
"""

import argparse
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor

from .files import printable


class Refused(ValueError):
    """A file asks for what is not done here; `names` are the functions and classes that it names for it."""

    def __init__(self, reason: str, names: tuple[str, ...] = ()):
        super().__init__(reason)
        self.names = names


# --- values that are not finished -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """What stands for a function or a class of the file: its name, and nothing that can be called."""

    text: str


@dataclass
class Foreign:
    """What stands for an object of a class that is not known: the state and contents that the file gives it."""

    name: str
    state: Any = None
    entries: dict = field(default_factory=dict)
    items: list = field(default_factory=list)


@dataclass
class Unfinished:
    """An array or a dtype between its creation and its state, when it becomes what `finish` returns."""

    finish: Callable[[Any], Any]
    places: list[int] = field(default_factory=list)  # where the memo holds it


@dataclass(frozen=True)
class Storage:
    """The bytes of one storage (uint8), and the type of its elements."""

    data: Tensor
    dtype: torch.dtype


# --- what may be named ------------------------------------------------------------------------------------------------


def checked(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise Refused(f"{what} of type {type(value).__name__}")
    return value


def _integers(value: Any, what: str) -> tuple[int, ...]:
    return tuple(checked(number, int, what) for number in checked(value, tuple, what))


def checked_key(key: Any) -> Any:
    """A key of a dict or an item of a set. Those are hashed: nested ones without a limit of depth, and some numbers so
    that a file can have all of its keys collide. So neither may be one."""
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, (str, bytes, bool, int, float, type(None), torch.dtype)):
            raise Refused(f"a key of type {type(part).__name__}")
        if isinstance(part, int) and not (0 if part is not key else -(2**60)) <= part < 2**60:
            raise Refused(f"a key of {part.bit_length()} bits, or one that is negative and among others")
    return key


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    found = OrderedDict()
    for pair in pairs.items() if isinstance(pairs, dict) else checked(pairs, (list, tuple), "an OrderedDict"):
        key, value = checked(pair, (list, tuple), "an OrderedDict")
        found[checked_key(key)] = value
    return found


def _counter(counts: Any = None) -> Counter:
    return Counter(checked({} if counts is None else counts, dict, "a Counter"))


def _set(items: Any = ()) -> set:
    return set(map(checked_key, checked(items, (list, tuple), "a set")))


def frozenset_of(items: Any = ()) -> frozenset:
    return frozenset(map(checked_key, checked(items, (list, tuple), "a frozenset")))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(checked(real, float, "a complex number"), checked(imaginary, float, "a complex number"))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Protocol 2 has no bytes: it writes them as text, to be encoded so."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused("bytes in another encoding than latin-1")
    return checked(text, str, "bytes").encode("latin-1")


def _bytes() -> bytes:
    return b""  # so protocol 2 writes the empty ones


def _bytearray(*content: Any) -> bytearray:
    """Never of a number, which would be that many bytes."""
    if len(content) == 2:
        return bytearray(_encode(*content))
    return bytearray(checked(content[0], bytes, "a bytearray")) if content else bytearray()


def _size(sizes: Any) -> torch.Size:
    return torch.Size(_integers(sizes, "a torch.Size"))


def _device(kind: Any, index: Any = None) -> torch.device:
    checked(kind, str, "a device")
    return torch.device(kind) if index is None else torch.device(kind, checked(index, int, "a device"))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = (), meta: Any = None):
    """A tensor in a storage: nothing is made of it unless all its elements lie within the storage."""
    checked(storage, Storage, "a storage")
    return _placed(storage.data, storage.dtype, offset, size, stride, grad, hooks, meta)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, meta: Any = None):
    """The same for dtypes that have no storage class of their own."""
    checked(storage, Storage, "a storage")
    if dtype not in ELEMENTS - set(STORAGES.values()):
        raise Refused("a tensor of a dtype that is written in another way")
    return _placed(storage.data, dtype, offset, size, stride, grad, hooks, meta)


def _placed(data: Tensor, dtype: torch.dtype, offset, size, stride, grad, hooks, meta) -> Tensor:
    sizes, strides = _integers(size, "a tensor's size"), _integers(stride, "a tensor's stride")
    checked(offset, int, "a tensor's offset")
    numbers = offset, *sizes, *strides
    if len(sizes) != len(strides) or len(sizes) > 64 or min(numbers) < 0 or max(numbers) >= 2**48:
        raise Refused(f"a tensor of size {printable(sizes)}, stride {printable(strides)} and offset {offset}")
    last = offset + sum((length - 1) * step for length, step in zip(sizes, strides)) if all(sizes) else offset - 1
    if (last + 1) * dtype.itemsize > data.numel():
        raise Refused(f"a tensor of size {sizes}, stride {strides} and offset {offset} in {data.numel()} bytes")
    if hooks or meta or dtype not in ELEMENTS:
        raise Refused(f"a tensor of {dtype} with hooks, or one that is quantized, conjugated or negated")
    with torch.no_grad():
        tensor = torch.empty(0, dtype=dtype, device=data.device)
        tensor.set_(data.untyped_storage(), data.storage_offset() // dtype.itemsize + offset, sizes, strides)
    return tensor.requires_grad_(checked(grad, bool, "requires_grad")) if grad else tensor


def _parameter(tensor: Any, grad: Any, hooks: Any) -> torch.nn.Parameter:
    if hooks:
        raise Refused("a parameter with hooks")
    return torch.nn.Parameter(checked(tensor, Tensor, "a parameter"), checked(grad, bool, "requires_grad"))


def _parameter_with_state(tensor: Any, grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    return _with_attributes(_parameter(tensor, grad, hooks), state)


def _typed(build: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor or a parameter with attributes of its own."""
    if kind not in (Name("torch.Tensor"), Name("torch.nn.parameter.Parameter")):
        raise Refused("a tensor of a class of its own", (getattr(kind, "text", ""),))
    if not isinstance(build, Name) or KNOWN.get(build.text) not in (_tensor, _tensor_v3, _parameter):
        raise Refused("a tensor that is made in another way")
    return _with_attributes(KNOWN[build.text](*checked(arguments, tuple, "arguments")), state)


def _with_attributes(tensor: Tensor, state: Any) -> Any:
    """Attributes take no name that a tensor has itself, a method's least of all."""
    for name, value in checked(state, dict, "the attributes of a tensor").items():
        if hasattr(tensor, checked(name, str, "the name of an attribute")) or not isinstance(value, PLAIN):
            raise Refused(f"an attribute {printable(name)} of a tensor")
        setattr(tensor, name, value)
    return tensor


PLAIN = (bool, int, float, str, type(None))


def _dtype(code: Any, align: Any = False, copy: Any = True) -> Unfinished:
    """A numpy dtype: numbers, booleans and text. Objects, which are pointers, and records are refused, and of the
    state nothing but the order of bytes is taken: numpy believes any flags that it is given."""
    dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 16 and code.isalnum() else None
    if dtype is None or dtype.kind not in "biufcSU":
        raise Refused(f"numpy data of type {printable(code) if isinstance(code, str) else type(code).__name__}")

    def finish(state: Any) -> np.dtype:
        order = checked(state, tuple, "the state of a dtype")[1:2]
        return dtype.newbyteorder(order[0]) if order and order[0] in ("<", ">") else dtype

    return Unfinished(finish)


def _array(kind: Any, shape: Any = None, code: Any = None) -> Unfinished:
    """A numpy array: made of a copy of its bytes, whose number must be that of its shape. numpy's own constructor takes
    a buffer and a dtype, so that a file could have it follow pointers; it cannot be named."""
    if kind != Name("numpy.ndarray"):
        raise Refused("an array of another class than numpy.ndarray")

    def finish(state: Any) -> np.ndarray:
        _, shape, dtype, fortran, raw = checked(state, tuple, "the state of an array")
        checked(dtype, np.dtype, "the dtype of an array")
        checked(raw, bytes, "the bytes of an array")
        sizes, number = _integers(shape, "the shape of an array"), dtype.itemsize
        for length in sizes:
            number *= length
        if number != len(raw) or min(sizes, default=0) < 0 or dtype.itemsize == 0:
            raise Refused(f"an array of shape {sizes} and type {dtype} in {len(raw)} bytes")
        return _values(raw, dtype).reshape(sizes, order="F" if fortran else "C").copy("K")

    return Unfinished(finish)


def _scalar(dtype: Any, raw: Any) -> np.generic:
    checked(dtype, np.dtype, "the dtype of a scalar")
    if len(checked(raw, bytes, "the bytes of a scalar")) != dtype.itemsize:
        raise Refused(f"a number of type {dtype} in {len(raw)} bytes")
    return _values(raw, dtype)[0]


def _values(raw: bytes, dtype: np.dtype) -> np.ndarray:
    """Numbers or text in bytes. A boolean is 0 or 1, and a character one that exists, else numpy does not know it."""
    values = np.frombuffer(raw, dtype)
    if dtype.kind == "b" and len(raw) and values.view(np.uint8).max() > 1:
        raise Refused("booleans that are neither 0 nor 1")
    if dtype.kind == "U" and len(raw) and np.frombuffer(raw, f"{dtype.byteorder}u4").max() > 0x10FFFF:
        raise Refused("text of characters that do not exist")
    return values


def _attribute(owner: Any, name: Any) -> Any:
    """`getattr`, by which pickle refers to methods before protocol 4; of nothing but those of METHODS."""
    if not isinstance(owner, Name) or not isinstance(name, str) or f"{owner.text}.{name}" not in METHODS:
        raise Refused("a method", ("builtins.getattr",))
    return METHODS[f"{owner.text}.{name}"]


# Those that a HistoryBuffer keeps, and the curves that MMEngine's OneCycleLR keeps.
METHODS = {
    f"{kind.__module__}.{kind.__name__}.{name}": getattr(kind, name)
    for kind, names in (
        (HistoryBuffer, ("min", "max", "current", "mean")),
        (OneCycleParamScheduler, ("_annealing_cos", "_annealing_linear")),
    )
    for name in names
}


def _history(*arguments: Any) -> HistoryBuffer:
    if arguments:
        raise Refused("a HistoryBuffer with arguments")
    return HistoryBuffer()


def set_history(buffer: HistoryBuffer, state: Any) -> None:
    """The two rows of numbers and their greatest length; its methods must be the four of the class."""
    parts = dict(checked(state, dict, "the state of a HistoryBuffer"))
    methods = parts.pop("statistics_methods", {})
    if not isinstance(methods, dict) or any(m is not vars(HistoryBuffer).get(name) for name, m in methods.items()):
        raise Refused("a HistoryBuffer with methods of its own")
    log, counts, most = (parts.pop(name, None) for name in ("_log_history", "_count_history", "max_length"))
    if not (isinstance(log, np.ndarray) and isinstance(counts, np.ndarray) and log.ndim == 1) or parts:
        raise Refused("a HistoryBuffer with another state")
    if log.shape != counts.shape or {log.dtype.kind, counts.dtype.kind} - set("biuf"):
        raise Refused("a HistoryBuffer whose numbers and counts differ in length, or are none")
    buffer.max_length = checked(most, int, "the length of a HistoryBuffer")
    buffer._log_history, buffer._count_history = log, counts


def _namespace(*arguments: Any) -> argparse.Namespace:
    if arguments:
        raise Refused("a Namespace with arguments")
    return argparse.Namespace()


def _none(*_: Any) -> None:
    raise Refused("an object of a class that may only be named")


# Each makes one value of its arguments, which it checks. None opens, imports, writes, or allocates more than it was
# given bytes for, and none returns anything that could be called but the methods of `_attribute`, which nothing calls.
KNOWN: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,  # of milestones, in schedulers
    "builtins.set": _set,
    "builtins.frozenset": frozenset_of,
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Tensor": _none,
    "torch.nn.parameter.Parameter": _none,
    "argparse.Namespace": _namespace,  # the arguments of an author's script
    # what MMEngine puts into its checkpoints
    "builtins.getattr": _attribute,
    "mmengine.logging.history_buffer.HistoryBuffer": _history,
    "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler": _none,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _none,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}

# Names that are values.
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}

# Names of the elements of a storage; they stand nowhere but in a reference to a storage.
STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}

# What elements may be: no quantized ones, which need scales, and none of less than a byte.
ELEMENTS = {
    *STORAGES.values(),
    *(dtype for name, dtype in DTYPES.items() if "float8" in name),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex32),
}
