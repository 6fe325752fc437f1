"""Reading what torch.save wrote, without calling anything that the file names.

A pickle is a program for a machine with a stack: it names functions and classes, and has them called. torch's reader
(`weights_only=True`) runs it with some hundred real ones, among them constructors that take a size, a buffer or a
storage. Here a name is a piece of text. What may be named stands in `KNOWN`, each with a function of ours that takes
the arguments apart and makes one plain value of them; the comments say why none can do harm. Everything else that a
pickle can ask for is refused, or, when asked to, left out.

Formats: the zip archive (torch 1.6 and later) and the stream of pickles before it. Every record is held to its declared
length and, in a zip archive, to its checksum.
"""

import argparse
import io
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor

from .files import printable

EXPANDED = 2**30  # bytes that the tensors of a file may stand for (by strides of 0) beyond eight times its length
WORK = 2**21  # units of work that a pickle may ask for beyond sixteen times its length; see `_Machine.charge`
CONTAINER = 64  # the work of making one
CHUNK = 2**24


class Refused(ValueError):
    """A file asks for what is not done here; `names` are the functions and classes that it names for it."""

    def __init__(self, reason: str, names: tuple[str, ...] = ()):
        super().__init__(reason)
        self.names = names


# --- values that are not finished -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """What stands for a function or a class of the file: its name, and nothing that can be called."""

    text: str


@dataclass
class _Foreign:
    """What stands for an object of a class that is not known: the state and contents that the file gives it."""

    name: str
    state: Any = None
    entries: dict = field(default_factory=dict)
    items: list = field(default_factory=list)


@dataclass
class _Unfinished:
    """An array or a dtype between its creation and its state, when it becomes what `finish` returns."""

    finish: Callable[[Any], Any]
    places: list[int] = field(default_factory=list)  # where the memo holds it


@dataclass(frozen=True)
class _Storage:
    """The bytes of one storage (uint8), and the type of its elements."""

    data: Tensor
    dtype: torch.dtype


# --- what may be named ------------------------------------------------------------------------------------------------


def _is(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise Refused(f"{what} of type {type(value).__name__.lstrip('_')}")
    return value


def _integers(value: Any, what: str) -> tuple[int, ...]:
    return tuple(_is(number, int, what) for number in _is(value, tuple, what))


def _key(key: Any) -> Any:
    """A key of a dict or an item of a set. Those are hashed: nested ones without a limit of depth, and some numbers so
    that a file can have all of its keys collide. So neither may be one."""
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, (str, bytes, bool, int, float, type(None), torch.dtype)):
            raise Refused(f"a key of type {type(part).__name__.lstrip('_')}")
        if isinstance(part, int) and not (0 if part is not key else -(2**60)) <= part < 2**60:
            raise Refused(f"a key of {part.bit_length()} bits, or one that is negative and among others")
    return key


def _ordered_dict(pairs: Any = ()) -> OrderedDict:
    found = OrderedDict()
    for pair in pairs.items() if isinstance(pairs, dict) else _is(pairs, (list, tuple), "an OrderedDict"):
        key, value = _is(pair, (list, tuple), "an OrderedDict")
        found[_key(key)] = value
    return found


def _counter(counts: Any = None) -> Counter:
    return Counter(_is({} if counts is None else counts, dict, "a Counter"))


def _set(items: Any = ()) -> set:
    return set(map(_key, _is(items, (list, tuple), "a set")))


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(map(_key, _is(items, (list, tuple), "a frozenset")))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_is(real, float, "a complex number"), _is(imaginary, float, "a complex number"))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Protocol 2 has no bytes: it writes them as text, to be encoded so."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused("bytes in another encoding than latin-1")
    return _is(text, str, "bytes").encode("latin-1")


def _bytes() -> bytes:
    return b""  # so protocol 2 writes the empty ones


def _bytearray(*content: Any) -> bytearray:
    """Never of a number, which would be that many bytes."""
    if len(content) == 2:
        return bytearray(_encode(*content))
    return bytearray(_is(content[0], bytes, "a bytearray")) if content else bytearray()


def _size(sizes: Any) -> torch.Size:
    return torch.Size(_integers(sizes, "a torch.Size"))


def _device(kind: Any, index: Any = None) -> torch.device:
    _is(kind, str, "a device")
    return torch.device(kind) if index is None else torch.device(kind, _is(index, int, "a device"))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = (), meta: Any = None):
    """A tensor in a storage: nothing is made of it unless all its elements lie within the storage."""
    _is(storage, _Storage, "a storage")
    return _placed(storage.data, storage.dtype, offset, size, stride, grad, hooks, meta)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, meta: Any = None):
    """The same for dtypes that have no storage class of their own."""
    _is(storage, _Storage, "a storage")
    if dtype not in ELEMENTS - set(STORAGES.values()):
        raise Refused("a tensor of a dtype that is written in another way")
    return _placed(storage.data, dtype, offset, size, stride, grad, hooks, meta)


def _placed(data: Tensor, dtype: torch.dtype, offset, size, stride, grad, hooks, meta) -> Tensor:
    sizes, strides = _integers(size, "a tensor's size"), _integers(stride, "a tensor's stride")
    _is(offset, int, "a tensor's offset")
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
    return tensor.requires_grad_(_is(grad, bool, "requires_grad")) if grad else tensor


def _parameter(tensor: Any, grad: Any, hooks: Any) -> torch.nn.Parameter:
    if hooks:
        raise Refused("a parameter with hooks")
    return torch.nn.Parameter(_is(tensor, Tensor, "a parameter"), _is(grad, bool, "requires_grad"))


def _parameter_with_state(tensor: Any, grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    return _with_attributes(_parameter(tensor, grad, hooks), state)


def _typed(build: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor or a parameter with attributes of its own."""
    if kind not in (_Name("torch.Tensor"), _Name("torch.nn.parameter.Parameter")):
        raise Refused("a tensor of a class of its own", (getattr(kind, "text", ""),))
    if not isinstance(build, _Name) or KNOWN.get(build.text) not in (_tensor, _tensor_v3, _parameter):
        raise Refused("a tensor that is made in another way")
    return _with_attributes(KNOWN[build.text](*_is(arguments, tuple, "arguments")), state)


def _with_attributes(tensor: Tensor, state: Any) -> Any:
    """Attributes take no name that a tensor has itself, a method's least of all."""
    for name, value in _is(state, dict, "the attributes of a tensor").items():
        if hasattr(tensor, _is(name, str, "the name of an attribute")) or not isinstance(value, (*PLAIN, type(None))):
            raise Refused(f"an attribute {printable(name)} of a tensor")
        setattr(tensor, name, value)
    return tensor


PLAIN = (bool, int, float, str)


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _Unfinished:
    """A numpy dtype: numbers, booleans and text. Objects, which are pointers, and records are refused, and of the
    state nothing but the order of bytes is taken: numpy believes any flags that it is given."""
    dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 16 and code.isalnum() else None
    if dtype is None or dtype.kind not in "biufcSU":
        raise Refused(f"numpy data of type {printable(code) if isinstance(code, str) else type(code).__name__}")

    def finish(state: Any) -> np.dtype:
        order = _is(state, tuple, "the state of a dtype")[1:2]
        return dtype.newbyteorder(order[0]) if order and order[0] in ("<", ">") else dtype

    return _Unfinished(finish)


def _array(kind: Any, shape: Any = None, code: Any = None) -> _Unfinished:
    """A numpy array: made of a copy of its bytes, whose number must be that of its shape. numpy's own constructor takes
    a buffer and a dtype, so that a file could have it follow pointers; it cannot be named."""
    if kind != _Name("numpy.ndarray"):
        raise Refused("an array of another class than numpy.ndarray")

    def finish(state: Any) -> np.ndarray:
        _, shape, dtype, fortran, raw = _is(state, tuple, "the state of an array")
        _is(dtype, np.dtype, "the dtype of an array")
        _is(raw, bytes, "the bytes of an array")
        sizes, number = _integers(shape, "the shape of an array"), dtype.itemsize
        for length in sizes:
            number *= length
        if number != len(raw) or min(sizes, default=0) < 0 or dtype.itemsize == 0:
            raise Refused(f"an array of shape {sizes} and type {dtype} in {len(raw)} bytes")
        return _values(raw, dtype).reshape(sizes, order="F" if fortran else "C").copy("K")

    return _Unfinished(finish)


def _scalar(dtype: Any, raw: Any) -> np.generic:
    _is(dtype, np.dtype, "the dtype of a scalar")
    if len(_is(raw, bytes, "the bytes of a scalar")) != dtype.itemsize:
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
    if not isinstance(owner, _Name) or not isinstance(name, str) or f"{owner.text}.{name}" not in METHODS:
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


def _set_history(buffer: HistoryBuffer, state: Any) -> None:
    """The two rows of numbers and their greatest length; its methods must be the four of the class."""
    parts = dict(_is(state, dict, "the state of a HistoryBuffer"))
    methods = parts.pop("statistics_methods", {})
    if not isinstance(methods, dict) or any(m is not vars(HistoryBuffer).get(name) for name, m in methods.items()):
        raise Refused("a HistoryBuffer with methods of its own")
    log, counts, most = (parts.pop(name, None) for name in ("_log_history", "_count_history", "max_length"))
    if not (isinstance(log, np.ndarray) and isinstance(counts, np.ndarray) and log.ndim == 1) or parts:
        raise Refused("a HistoryBuffer with another state")
    if log.shape != counts.shape or {log.dtype.kind, counts.dtype.kind} - set("biuf"):
        raise Refused("a HistoryBuffer whose numbers and counts differ in length, or are none")
    buffer.max_length = _is(most, int, "the length of a HistoryBuffer")
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
    "builtins.frozenset": _frozenset,
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


# --- the machine ------------------------------------------------------------------------------------------------------


class _Machine:
    """Runs one pickle.

    Args:
        storage: gives the storage that a reference, a tuple of the file, names.
        length: of the file; it bounds the work and the memory.
        left_out: where names of objects that are not known are gathered; None refuses the first.
    """

    def __init__(self, storage: Callable[[tuple], _Storage], length: int, left_out: set[str] | None = None):
        self.storage, self.left_out = storage, left_out
        self.work, self.bytes = WORK + 16 * length, EXPANDED + 8 * length
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, source: Any) -> Any:
        """The value that the pickle makes: of bytes, or of what has `read` and `readline`, up to its last operation."""
        for operation, argument, _ in pickletools.genops(source):
            if operation.name == "STOP":
                value = self.pop()
                break
            self.step(operation.name, argument)
        return self.settled(value, {})

    def charge(self, work: int, *values: Any) -> None:
        """Pay for work, and for looking through values, which a file can have done again and again in few bytes."""
        self.work -= work + sum(len(value) for value in values if isinstance(value, SIZED))
        if self.work < 0:
            raise Refused("more work, or more objects, than its length accounts for")

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Unfinished):
            raise Refused("an array or a dtype without its state")
        return value

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        if any(isinstance(item, _Unfinished) for item in items):
            raise Refused("an array or a dtype without its state")
        return items

    def step(self, operation: str, argument: Any) -> None:
        match operation:
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                self.stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                self.stack.append(argument)
            case "LONG1" | "LONG4":
                if argument.bit_length() > 1024:
                    raise Refused(f"a whole number of {argument.bit_length()} bits")
                self.stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":  # text of Python 2
                self.stack.append(argument.encode("latin-1").decode())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                index = len(self.memo) if argument is None else argument
                self.memo[index] = self.stack[-1]
                if isinstance(self.stack[-1], _Unfinished):
                    self.stack[-1].places.append(index)
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                self.charge(CONTAINER)
                self.stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}.get(operation, set)())
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(operation[-1]))]
                self.stack.append(tuple(reversed(items)))
            case "FROZENSET":
                items = self.pop_mark()
                self.stack.append(_frozenset(items))
            case "APPEND" | "APPENDS":
                items = [self.pop()] if operation == "APPEND" else self.pop_mark()
                owner = self.stack[-1]
                _is(owner.items if isinstance(owner, _Foreign) else owner, list, "items of an object").extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self.pop(), self.pop()][::-1] if operation == "SETITEM" else self.pop_mark()
                owner = self.stack[-1]
                entries = _is(owner.entries if isinstance(owner, _Foreign) else owner, dict, "entries of an object")
                if len(items) % 2:
                    raise Refused("entries of which one has no value")
                for key, value in zip(items[::2], items[1::2]):  # `update` of a Counter would add
                    entries[_key(key)] = value
            case "ADDITEMS":
                items = self.pop_mark()
                _is(self.stack[-1], set, "items of an object").update(map(_key, items))
            case "GLOBAL":
                self.name(*argument.rsplit(" ", 1))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.name(_is(module, str, "a name"), _is(name, str, "a name"))
            case "REDUCE" | "NEWOBJ":
                arguments, called = self.pop(), self.pop()
                self.call(called, _is(arguments, tuple, "arguments"))
                if isinstance(self.stack[-1], Tensor):
                    self.bytes -= self.stack[-1].numel() * self.stack[-1].element_size()
                    if self.bytes < 0:
                        raise Refused("tensors of a size that its length does not account for")
            case "BUILD":
                self.build(self.pop())
            case "BINPERSID":
                reference = _is(self.pop(), tuple, "a reference to a storage")
                if reference[:1] == ("module",) and len(reference) > 1 and self.left_out is not None:
                    self.stack.append(reference[1])  # the older format has the source beside a network's class
                else:
                    self.stack.append(self.storage(reference))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise Refused(f"the operation {operation} of pickle")

    def name(self, module: str, name: str) -> None:
        text = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if text in DTYPES or text in METHODS:
            self.stack.append(DTYPES.get(text) or METHODS[text])
        elif text in KNOWN or text in STORAGES or self.left_out is not None:
            self.stack.append(_Name(text))
        else:
            raise Refused("an object that it does not know", (text,))

    def call(self, called: Any, arguments: tuple) -> None:
        text = _is(called, _Name, "a call of something").text
        self.charge(CONTAINER, *arguments)
        if text in KNOWN:
            try:
                self.stack.append(KNOWN[text](*arguments))
            except Refused:
                if self.left_out is None or text.startswith("torch."):
                    raise
                self.leave_out(text)
        elif self.left_out is not None and text not in STORAGES:
            self.leave_out(text)
        else:
            raise Refused("a storage that is called")

    def leave_out(self, name: str) -> None:
        self.left_out.add(name)  # type: ignore[union-attr]
        self.stack.append(_Foreign(name))

    def build(self, state: Any) -> None:
        owner = self.stack[-1]
        self.charge(
            1, state, *(state if isinstance(state, tuple) else state.values() if isinstance(state, dict) else ())
        )
        if isinstance(owner, _Unfinished):
            try:
                self.stack[-1] = owner.finish(state)
            except Refused:
                if self.left_out is None:
                    raise
                self.stack.pop()
                self.leave_out("numpy.ndarray")
            for place in owner.places:
                self.memo[place] = self.stack[-1]
        elif isinstance(owner, HistoryBuffer):
            _set_history(owner, state)
        elif isinstance(owner, argparse.Namespace):
            vars(owner).update({_is(name, str, "a name"): value for name, value in _is(state, dict, "a state").items()})
        elif type(owner) is OrderedDict and isinstance(state, dict) and state.keys() <= {"_metadata"}:
            vars(owner).update(state)  # the versions of a network's modules
        elif isinstance(owner, _Foreign):
            owner.state = state
        else:
            raise Refused(f"a state for a {type(owner).__name__}")

    def settled(self, value: Any, done: dict[int, tuple]) -> Any:
        """`value` without anything that stood for something else. An object that was left out becomes the weights of
        the network that it is, or the entries or items that it has, or None."""
        if isinstance(value, (_Name, _Foreign)):
            if self.left_out is None:
                raise Refused("a name where a value should be", (getattr(value, "text", ""),))
            if isinstance(value, _Name):
                self.left_out.add(value.text)
        if isinstance(value, (_Unfinished, _Storage)):
            raise Refused("a storage, or an array without its state")
        if isinstance(value, _Name):
            return None
        if not isinstance(value, (tuple, frozenset, list, dict, set, argparse.Namespace, _Foreign)):
            return value
        if id(value) in done:
            if done[id(value)][1] is UNDONE:
                raise Refused("a tuple that holds itself")
            return done[id(value)][1]
        # what holds itself is met again before it is done: as what it is, or None; `value` is kept, for its id is
        if type(value) is torch.Size:
            return value
        until = {tuple: UNDONE, frozenset: UNDONE, _Foreign: None}.get(type(value), value)
        done[id(value)] = value, until
        if isinstance(value, _Foreign):
            found = self.settled(self.state_dict(value) or value.entries or value.items or None, done)
            done[id(value)] = value, found
        elif isinstance(value, (tuple, frozenset)):
            done[id(value)] = value, type(value)(self.settled(item, done) for item in value)
        elif isinstance(value, list):
            value[:] = [self.settled(item, done) for item in value]
        elif isinstance(value, (dict, argparse.Namespace)):
            if isinstance(value, OrderedDict):
                self.settled(vars(value), done)
            entries = vars(value) if isinstance(value, argparse.Namespace) else value
            for key, item in entries.items():
                entries[key] = self.settled(item, done)
        return done[id(value)][1]

    def state_dict(self, network: _Foreign) -> dict[str, Tensor]:
        """The weights of an object that has what every torch module has; of others none."""
        found: dict[str, Tensor] = {}
        waiting = [("", network)]
        while waiting:
            prefix, module = waiting.pop()
            state = module.state if isinstance(module.state, dict) else {}
            passing = state.get("_non_persistent_buffers_set")
            for kind in ("_parameters", "_buffers"):
                parts = state.get(kind)
                for name, value in parts.items() if isinstance(parts, dict) else ():
                    self.charge(1, prefix, name)
                    if isinstance(value, Tensor) and not (isinstance(passing, set) and name in passing):
                        found[f"{prefix}{_is(name, str, 'the name of a tensor')}"] = value
            modules = state.get("_modules")
            children = []
            for name, child in modules.items() if isinstance(modules, dict) else ():
                if isinstance(child, _Foreign):
                    self.charge(CONTAINER, prefix, _is(name, str, "the name of a module"))
                    children.append((f"{prefix}{name}.", child))
            waiting += reversed(children)
        return found


UNDONE = object()
SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset, np.ndarray)


# --- the two formats --------------------------------------------------------------------------------------------------


def read(path: Path, device: torch.device, left_out: set[str] | None = None) -> Any:
    """What torch.save put into a file.

    Args:
        device: where the tensors go.
        left_out: where the names of objects that are not known are gathered; by default such a file is refused.

    Raises:
        Refused: the file asks for what is not done here, or contradicts itself.
        Exception: of many kinds, from a file that is damaged.
    """
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file, device, left_out)
        if start.startswith(b"\x80"):
            return _read_stream(file, device, left_out)
    raise Refused(_kind(start))


def _kind(start: bytes) -> str:
    """What a file is that is no checkpoint, by its first bytes."""
    text = start.lstrip().lower()
    if not start:
        return "nothing: it is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page: the address is not that of the file, or asks for a login or a click"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: `git lfs pull` fetches the file itself"
    if start[257:262] == b"ustar":
        return (
            "a tar archive: unpack it, or, if torch wrote it (before version 0.1.10), save it anew with a later torch"
        )
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            return f"{kind}: unpack it" if "archive" in kind else kind
    return "neither of the two formats of torch.save"


KINDS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x93NUMPY": "a numpy array",
}


def _reference(reference: tuple) -> tuple[str, torch.dtype, int, tuple | None]:
    """(key, dtype, number of elements, view) of a reference to a storage."""
    kind, element, key, location, number, *view = reference
    if kind != "storage" or not isinstance(element, _Name) or element.text not in STORAGES:
        raise Refused("a reference to something else than a storage")
    _is(key, str, "the key of a storage"), _is(location, str, "the place of a storage")
    if _is(number, int, "the length of a storage") < 0 or len(view) > 1:
        raise Refused(f"a storage of {number} elements")
    return key, STORAGES[element.text], number, view[0] if view else None


def check_booleans(data: Tensor, dtype: torch.dtype | None = None) -> None:
    """A byte that is neither 0 nor 1 is no boolean: what torch makes of it is undefined.

    Args:
        data: a tensor, or the bytes of one of type `dtype`.
    """
    looked_at = (dtype or data.dtype) is torch.bool and data.numel() and data.device.type != "meta"
    if looked_at and data.view(torch.uint8).max() > 1:
        raise Refused("booleans that are neither 0 nor 1")


def _fill(data: Tensor, file: IO[bytes], what: str) -> None:
    target, done = memoryview(data.numpy()), 0  # type: ignore[arg-type]
    while done < len(target):
        count = file.readinto(target[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise Refused(f"{what} of {len(target)} bytes, of which {done} are there")
        done += count


def _read_zip(file: IO[bytes], device: torch.device, left_out: set[str] | None) -> Any:
    length = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        names = Counter(archive.namelist())
        if sum(info.file_size for info in archive.infolist()) > length:
            raise Refused("records that are longer than the file together: packed, or within each other")
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise Refused("a TorchScript archive, which is a program; its state_dict() can be saved with torch.save")
        tops = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(tops) != 1:
            raise Refused("a zip archive, but not one of torch.save: it has no data.pkl of its own")

        def record(name: str) -> zipfile.ZipInfo:
            if names[f"{tops[0]}/{name}"] != 1:
                raise Refused(f"a record {printable(name)} that is missing or there twice")
            info = archive.getinfo(f"{tops[0]}/{name}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Refused(f"a record {printable(name)} that is packed")
            return info

        order = f"{tops[0]}/byteorder"
        if order in names and archive.read(record("byteorder")) != b"little":
            raise Refused("another order of bytes than this machine's")
        storages: dict[str, Tensor] = {}
        booleans: set[str] = set()

        def storage(reference: tuple) -> _Storage:
            key, dtype, number, view = _reference(reference)
            if view is not None:
                raise Refused("a storage within another")
            if key not in storages:
                info = record(f"data/{key}")
                data = torch.empty(info.file_size, dtype=torch.uint8)
                with archive.open(info) as content:
                    _fill(data, content, f"a record {printable(key)}")
                    content.read(1)  # at its end the checksum is compared, also that of an empty record
                storages[key] = data.to(device)
            if dtype is torch.bool and key not in booleans:
                booleans.add(key)
                check_booleans(storages[key], dtype)
            if storages[key].numel() != number * dtype.itemsize:
                raise Refused(f"a storage of {number} elements in a record of {storages[key].numel()} bytes")
            return _Storage(storages[key], dtype)

        return _Machine(storage, length, left_out).run(archive.read(record("data.pkl")))


MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with
PROTOCOL = 1001


def _read_stream(file: IO[bytes], device: torch.device, left_out: set[str] | None) -> Any:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    # no `tell`, which would be asked at every operation; and a file sets aside what it is asked for before it looks
    stream = SimpleNamespace(read=lambda count: file.read(min(count, length)), readline=file.readline)

    def none(_: tuple) -> _Storage:
        raise Refused("a storage outside of the data")

    if _Machine(none, length).run(stream) != MAGIC or _Machine(none, length).run(stream) != PROTOCOL:
        raise Refused("neither of the two formats of torch.save")
    system = _Machine(none, length).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("another order of bytes than this machine's")
    # Twice: first over storages without memory, for their lengths come before their bytes
    storages: dict[str, tuple[Tensor, torch.dtype]] = {}

    def storage(reference: tuple) -> _Storage:
        key, dtype, number, view = _reference(reference)
        if key not in storages:
            storages[key] = torch.empty(number * dtype.itemsize, dtype=torch.uint8, device="meta"), dtype
        data, first = storages[key]
        if first != dtype or data.numel() != number * dtype.itemsize:
            raise Refused("two references that differ about a storage")
        if view is None:
            return _Storage(data, dtype)
        _, start, count = _is(view, tuple, "a storage within another")
        start, count = (_is(value, int, "a storage within another") * dtype.itemsize for value in (start, count))
        if min(start, count) < 0 or start + count > data.numel():
            raise Refused("a storage within another that reaches out of it")
        return _Storage(data[start : start + count], dtype)

    begin = file.tell()
    _Machine(storage, length, left_out).run(stream)
    keys = _Machine(none, length).run(stream)
    if (
        not isinstance(keys, list)
        or len(keys) != len(storages)
        or {_is(k, str, "a key") for k in keys} != storages.keys()
    ):
        raise Refused("storages that are not those of its list")
    for key in keys:
        empty, dtype = storages[key]
        declared = struct.unpack("<q", file.read(8))[0]
        if declared * dtype.itemsize != empty.numel() or empty.numel() > length - file.tell():
            raise Refused(f"a storage of {empty.numel()} bytes that declares {declared} elements")
        data = torch.empty(empty.numel(), dtype=torch.uint8)
        _fill(data, file, "a storage")
        check_booleans(data, dtype)
        storages[key] = data.to(device), dtype
    if file.read(1):
        raise Refused("more bytes after its last storage")
    file.seek(begin)
    return _Machine(storage, length, left_out).run(stream)
