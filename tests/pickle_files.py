"""Values that torch.save writes, and pickles piece by piece: what the tests of reading them change and break."""

import argparse
import collections
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import nn

from attlas import pickle_values


def parameter_with_attribute() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(2))
    weight.no_weight_decay = True
    return weight


def views() -> list:
    whole = torch.arange(12.0).reshape(3, 4)
    return [whole, whole[1:, ::2], whole.T, whole[:1].expand(5, 4)]


HONEST = {
    "arguments": argparse.Namespace(lr=0.1, name="x", nested={"a": [1, (2, None)]}),
    "float": np.float64(91.25),
    "int": np.int64(7),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big endian": np.array([1, 256], dtype=">i4"),
    "names": np.array(["bed", "sofa"]),
    "no items": np.zeros((0, 3)),
    "numpy dtype": np.dtype(">f4"),
    "curve": OneCycleParamScheduler._annealing_cos,
    "state": nn.BatchNorm1d(2).state_dict(),
    "parameter": parameter_with_attribute(),
    "views": views(),
    "dtypes": [torch.zeros(2, dtype=dtype) for dtype in sorted(pickle_values.ELEMENTS, key=str)],
    "empty": [torch.zeros(0), torch.tensor(3.0), torch.zeros(2, 0, 3)],
    "milestones": collections.Counter({3: 1, 8: 2}),
    "sets": [{1, 2}, frozenset("ab")],
    "numbers": [1j, 2**100, -1, 0.5, True, None, float("inf")],
    "bytes": [b"", b"a\xff", bytearray(b"x"), bytearray()],
    "torch": [torch.Size([1, 2]), torch.float32, torch.device("cuda", 1), torch.device("cpu")],
    "random": [random.Random(0).getstate(), torch.get_rng_state()],
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def long(value: int) -> bytes:
    content = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + content


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def called(path: str, *arguments: bytes) -> bytes:
    return name(path) + tuple_of(*arguments) + b"R"


def storage(count: int, kind: str = "torch.FloatStorage", key: str = "0") -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(*, count: int = 4, offset: int = 0, size=(4,), stride=(1,), hooks: bytes = b"}", **options) -> bytes:
    shape, steps = (tuple_of(*map(number, values)) for values in (size, stride))
    parts = storage(count, **options), number(offset), shape, steps, b"\x89", hooks
    return called("torch._utils._rebuild_tensor_v2", *parts)


def bytes_of(value: bytes) -> bytes:
    return called("_codecs.encode", text(value.decode("latin-1")), text("latin1"))


def dtype(code: str, order: str = "<") -> bytes:
    state = tuple_of(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0))
    return called("numpy.dtype", text(code), b"\x89", b"\x88") + state + b"b"


def array(shape, code: bytes, raw: bytes, kind: str = "numpy.ndarray") -> bytes:
    start = called("numpy._core.multiarray._reconstruct", name(kind), tuple_of(number(0)), bytes_of(b"b"))
    return start + tuple_of(number(1), tuple_of(*map(number, shape)), code, b"\x89", raw) + b"b"


RECORD = struct.pack("<4f", 1, 2, 3, 4)


def archive(path: Path, value: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, that holds {"x": value}."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}" + text("x") + value + b"s.")
        for key, content in (records or {"data/0": RECORD, "byteorder": b"little", "version": b"3\n"}).items():
            file.writestr(f"a/{key}", content)
    return path


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
