"""No file of random pickles or changed bytes does harm: it is read as plain data, or refused."""

import argparse
import os
import random
import struct
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import fuzz, mutated, tries
from mmengine.logging import HistoryBuffer
from pickle_files import (
    HISTORY,
    HONEST,
    RECORD,
    archive,
    array,
    bytes_of,
    called,
    dtype,
    name,
    number,
    tensor,
    text,
    tuple_of,
)

from attlas import checkpoint, pickle_values, torch_files

FORBIDDEN = {"exec", "compile", "pickle.find_class", "ctypes.dlopen", "socket.connect", "subprocess.Popen"}
FORBIDDEN |= {f"os.{name}" for name in ("system", "exec", "fork", "posix_spawn", "remove", "rename", "mkdir", "chmod")}
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
PLAIN = (*PLAIN, torch.Size, torch.dtype, torch.device, np.dtype)
events: list[str] = []
listening = False


def listen(event: str, arguments: tuple) -> None:
    if not listening:
        return
    if event in FORBIDDEN or (event == "open" and arguments[1] not in (None, "r", "rb")):
        if event == "exec" and getattr(arguments[0], "co_filename", "").startswith(sysconfig.get_path("stdlib")):
            return  # an import of Python's own
        events.append(f"{event} {arguments}"[:200])


def look_at(value, seen: set[int]) -> None:
    """Use everything that was read as a user might; complain of what is not plain data."""
    if isinstance(value, torch.Tensor):
        vars(value), value.shape, value.numel() < 1e6 and value.detach().double().sum()
    elif isinstance(value, (np.ndarray, np.generic)):
        assert value.dtype.kind in "biufcSU"
        repr(value)
    elif isinstance(value, HistoryBuffer):
        if len(value._log_history):
            value.mean(), value.statistics("min")
        look_at(vars(value), seen)
    elif isinstance(value, (dict, list, tuple, set, frozenset, argparse.Namespace)):
        if id(value) not in seen:
            seen.add(id(value))
            for item in vars(value) if isinstance(value, argparse.Namespace) else value:
                look_at(item, seen)
            for item in value.values() if isinstance(value, dict) else ():
                look_at(item, seen)
    elif not isinstance(value, PLAIN):
        assert value in pickle_values.METHODS.values(), f"{type(value)} in what was read"


def read_and_look(path: Path) -> str | None:
    """Read a file: the words of the refusal, or None. AssertionError for whatever should not happen."""
    global listening
    if not events and not getattr(sys, "listening", False):
        sys.listening = True
        sys.addaudithook(listen)
    before = (
        dict(vars(HistoryBuffer)),
        [getattr(f, "__defaults__", None) for f in pickle_values.KNOWN.values()],
        os.listdir(),
    )
    left_out = set() if random.random() < 0.3 else None
    try:
        listening = True
        found = checkpoint.read(path, left_out=left_out)
        words = None
    except ValueError as error:
        words = str(error)
    finally:
        listening = False
    assert not events, events
    assert before == (
        dict(vars(HistoryBuffer)),
        [getattr(f, "__defaults__", None) for f in pickle_values.KNOWN.values()],
        os.listdir(),
    )
    if words is not None:
        assert path.name in words
        assert "MemoryError" not in words, words
        assert all(character.isprintable() for character in words.replace("\n", ""))
        return words
    look_at(found, set())
    return None


NAMES = [*pickle_values.KNOWN] * 4 + [
    *pickle_values.STORAGES,
    *pickle_values.DTYPES,
    "os.system",
    "builtins.eval",
    "torch.load",
]
NAMES += ["torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor", "torch.sparse.FloatTensor", "a.B"]


class Program:
    """A random pickle: mostly what a checkpoint is made of, with one thing or another in the wrong place."""

    def __init__(self, seed: int):
        self.draw, self.puts = random.Random(seed), 0

    def atom(self) -> bytes:
        draw = self.draw
        return draw.choice(
            (
                b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f",
                number(draw.choice((0, 1, 2, 4, 16, -1, 2**31 - 1, -(2**31)))),
                b"\x8a\x0a" + draw.randbytes(10),
                b"G" + struct.pack(">d", draw.choice((0.0, 1.5, float("nan"), float("inf")))),
                text(draw.choice(("", "a", "O", "<", "f4", "O8", "latin1", "state_dict", "touch x", "\x1b[J", "min"))),
                name(draw.choice(NAMES)),
            )
        )  # fmt: skip

    def value(self, depth: int = 0) -> bytes:
        draw = self.draw
        kind = draw.randrange(14) if depth < 4 else 0
        item = lambda: self.value(depth + 1)  # noqa: E731
        match kind:
            case 0 | 1:
                made = self.atom()
            case 2:
                made = tensor(
                    count=draw.choice((4, 4, 4, 2, 0, -1, 2**31 - 1)), offset=draw.choice((0, 0, 1, -1, 2**30)),
                    size=[draw.choice((4, 1, 2, 0, -1, 2**30)) for _ in range(draw.randrange(3))],
                    stride=[draw.choice((1, 0, 2, -1)) for _ in range(draw.randrange(3))],
                    kind=draw.choice(list(pickle_values.STORAGES)), key=draw.choice(("0", "0", "1", "../0")),
                    hooks=draw.choice((b"}", b"}", b"N", item())),
                )  # fmt: skip
            case 3:
                raw = bytes_of(draw.randbytes(draw.choice((0, 4, 8, 16))))
                shape = [draw.choice((0, 1, 2, 4, -1, 2**31 - 1)) for _ in range(draw.randrange(3))]
                code = draw.choice((dtype(draw.choice(("f4", "i8", "O8", "V8", "U1", "S0", "b1", "M8"))), item()))
                made = array(shape, code, draw.choice((raw, raw, item())), draw.choice(("numpy.ndarray", *NAMES)))
            case 4:
                made = name(HISTORY) + b")\x81}(" + text("max_length") + number(9) + text("_log_history") + item()
                made += text("_count_history") + item() + b"ub"
            case 5:
                made = called(draw.choice(NAMES), *(item() for _ in range(draw.randrange(4))))
            case 6:  # what constructors of arrays and tensors take
                usual = tuple_of(number(draw.choice((1, 4, 2**31 - 1)))), text(draw.choice("Ofc")), bytes_of(b"A" * 8)
                made = called(draw.choice(NAMES), *usual[: draw.randrange(4)])
            case 7:
                made = name(draw.choice(NAMES)) + tuple_of(*(item() for _ in range(draw.randrange(3)))) + b"\x81"
            case 8:
                made = item() + item() + b"b"
            case 9:
                made = b"}(" + b"".join(self.atom() + item() for _ in range(draw.randrange(4))) + b"u"
            case 10:
                made = b"](" + b"".join(item() for _ in range(draw.randrange(4))) + b"e"
            case 11:
                made = tuple_of(*(item() for _ in range(draw.randrange(4))))
            case 12:
                made = item() + item() + b"\x86" if draw.random() < 0.8 else item() + b"Q"
            case 13:
                made = b"h" + bytes([draw.randrange(max(1, min(self.puts, 255)))]) if self.puts else self.atom()
        if draw.random() < 0.3 and self.puts < 255:
            made += b"q" + bytes([self.puts])
            self.puts += 1
        return made

    def write(self, path: Path) -> None:
        draw = self.draw
        body = self.value()
        if draw.random() < 0.2:
            body = mutated(body, draw)
        if draw.random() < 0.7:
            archive(path, body)
        else:  # the older format
            pickles = [
                b"\x80\x02" + b"\x8a\x0a" + torch_files.MAGIC.to_bytes(10, "little") + b".",
                b"\x80\x02M\xe9\x03.",
            ]
            pickles += [b"\x80\x02}" + text("little_endian") + b"\x88s.", b"\x80\x02}" + text("x") + body + b"s."]
            keys = b"\x80\x02](" + b"".join(text(key) for key in draw.choice(([], ["0"], ["0", "1"]))) + b"e."
            path.write_bytes(b"".join(pickles) + keys + struct.pack("<q", 4) + RECORD)


def try_programs(seeds: list[int]) -> list[int]:
    """[accepted, refused] of pickles that are made by chance."""
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"x": 1}, Path(folder) / "first.pth")
        checkpoint.read(Path(folder) / "first.pth")  # imports what reading imports
        path = Path(folder) / "evil.pth"
        for seed in range(*seeds):
            Program(seed).write(path)
            random.seed(seed)
            counts[read_and_look(path) is not None] += 1
    return counts


def try_mutations(seeds: list[int]) -> list[int]:
    """[accepted, refused] of honest checkpoints of both formats with some bytes changed."""
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evil.pth"
        files = []
        held = {
            key: HONEST[key] for key in ("arguments", "float", "array", "state", "parameter", "milestones", "bytes")
        }
        for zip_file in (True, False):
            torch.save({**held, "loss": HistoryBuffer([1.5], [1])}, path, _use_new_zipfile_serialization=zip_file)
            checkpoint.read(path)
            files.append(path.read_bytes())
        checkpoint.save(Path(folder) / "a.safetensors", {"a": torch.arange(9.0), "b": torch.zeros(2, 3)}, {"x": "y"})
        files.append((Path(folder) / "a.safetensors").read_bytes())
        for seed in range(*seeds):
            draw = random.Random(seed)
            number = seed % len(files)
            target = path if number < 2 else path.with_suffix(".safetensors")
            target.write_bytes(mutated(files[number], draw))
            random.seed(seed)
            counts[read_and_look(target) is not None] += 1
            target.unlink()
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("function", [try_programs, try_mutations])
def test_no_file_does_harm(function, count):
    outcomes = fuzz(function, [[start, start + 200] for start in range(0, tries(6000), 200)])
    assert not [outcome for outcome in outcomes if outcome.died or outcome.error]
    accepted, refused = (sum(outcome.value[i] for outcome in outcomes) for i in (0, 1))
    assert accepted > 100
    assert refused > 1000
    what = {"try_programs": "pickles made by chance", "try_mutations": "checkpoints with changed bytes"}
    count(what[function.__name__], f"{accepted + refused:,} ({accepted:,} accepted, {refused:,} refused)")
