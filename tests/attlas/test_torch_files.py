"""What torch.save writes is read as it was; what a file asks for beyond that is not done."""

import io
import os
import pathlib
import pickle
import shlex
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from pickle_files import (
    HISTORY,
    HONEST,
    archive,
    array,
    bytes_of,
    called,
    dtype,
    long,
    name,
    number,
    storage,
    tensor,
    text,
    tuple_of,
)
from torch import nn

from attlas import checkpoint


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.extra = None


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        same = (type(one), one.dtype, one.stride(), one.requires_grad) == (
            *(type(other), other.dtype, other.stride(), other.requires_grad),
        )
        return same and one.shape == other.shape and one.tolist() == other.tolist() and vars(one) == vars(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.strides == other.strides and np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("name", HONEST)
def test_honest_values_are_read_as_they_were(tmp_path, name, options):
    torch.save({"x": HONEST[name]}, tmp_path / "a.pth", **options)
    found = checkpoint.read(tmp_path / "a.pth")
    assert equal(found, {"x": HONEST[name]})
    if name == "state":
        assert found["x"]._metadata == HONEST[name]._metadata
    torch.save(found, tmp_path / "again.pth")  # plain again, not classes of ours
    assert b"attlas" not in (tmp_path / "again.pth").read_bytes()


@pytest.mark.parametrize("zip_file", [True, False])
def test_memory_is_shared_as_it_was(tmp_path, zip_file):
    weight = torch.arange(6.0)
    torch.save({"a": weight, "b": weight.view(2, 3)[1]}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_file)
    found = checkpoint.read(tmp_path / "a.pth")
    found["a"][4] = 9
    assert found["b"].tolist() == [3, 9, 5]


def test_histories_go_on(tmp_path):
    history = HistoryBuffer([1.5, 2.5], [1, 1])
    torch.save({"loss": history}, tmp_path / "a.pth")
    found = checkpoint.read(tmp_path / "a.pth")["loss"]
    assert found.mean() == 2.0
    found.update(6.5)
    assert found.statistics("current") == 6.5


# --- what is refused


def test_the_pieces_of_these_tests_make_what_they_should(tmp_path):
    made = tensor(), array((2, 2), dtype("i2"), bytes_of(b"abcdefgh")), dtype("f4", ">")
    found = checkpoint.read(archive(tmp_path / "a.pth", tuple_of(*made)))["x"]
    assert found[0].tolist() == [1, 2, 3, 4]
    assert found[1].tolist() == [[25185, 25699], [26213, 26727]]
    assert found[2] == np.dtype(">f4")


POINTER = called("numpy.ndarray", tuple_of(number(1)), text("O"), bytes_of(b"AAAAAAAA"))

REFUSED = {
    "pointers": (POINTER, "class that may only be named"),
    "pointers in a history": (called(HISTORY, POINTER, POINTER), "may only be named"),
    "pointers by NEWOBJ": (name("numpy.ndarray") + tuple_of(tuple_of(number(1)), text("O")) + b"\x81", "only be named"),
    "array of objects": (array((1,), dtype("O8"), bytes_of(b"AAAAAAAA")), "numpy data of type O8"),
    "array of records": (array((1,), dtype("V8"), bytes_of(b"AAAAAAAA")), "numpy data of type V8"),
    "array of another class": (array((1,), dtype("i1"), bytes_of(b"a"), HISTORY), "another class than numpy.ndarray"),
    "array that is longer than its bytes": (array((9,), dtype("i4"), bytes_of(b"abcd")), r"shape \(9,\).* in 4 bytes"),
    "array of a negative shape": (array((-1, -4), dtype("i1"), bytes_of(b"abcd")), r"array of shape \(-1, -4\)"),
    "array without its state": (b"]" + array((1,), b"N", b"N").split(b"(J\1\0\0\0")[0] + b"a", "without its state"),
    "number that is shorter than its type": (
        called("numpy._core.multiarray.scalar", dtype("f8"), bytes_of(b"a")),
        "float64 in 1 bytes",
    ),
    "method": (called("builtins.getattr", name(HISTORY), text("__init__")), "code that it names: builtins.getattr"),
    "method of a value": (called("builtins.getattr", text("a"), text("format")), "builtins.getattr"),
    "state of a class": (name(HISTORY) + b"}" + text("mean") + b"Nsb", "a state for a Name"),
    "method of a dictionary": (
        called("collections.OrderedDict") + b"}" + text("items") + b"Nsb",
        "a state for a OrderedDict",
    ),
    "method of a history": (name(HISTORY) + b")\x81}" + text("mean") + b"Nsb", "HistoryBuffer with another state"),
    "memory": (called("torch.storage.UntypedStorage", number(1 << 30)), "storage that is called"),
    "memory by bytearray": (called("builtins.bytearray", number(1 << 30)), "a bytearray of type int"),
    "tensor of a size alone": (called("torch.Tensor", number(1 << 28)), "may only be named"),
    "tensor beyond its storage": (tensor(size=(5,)), "tensor of size .* in 16 bytes"),
    "tensor beyond its storage by its stride": (tensor(size=(2,), stride=(4,)), "in 16 bytes"),
    "tensor beyond its storage by its offset": (tensor(offset=1), "in 16 bytes"),
    "tensor before its storage": (tensor(offset=-1), "offset -1"),
    "tensor with a negative stride": (tensor(size=(2,), offset=3, stride=(-1,)), r"stride \(-1,\)"),
    "tensor with another number of strides": (tensor(size=(2, 2)), "tensor of size"),
    "tensor of terabytes": (
        tensor(size=(1 << 30, 1 << 10), stride=(0, 0)),
        "tensors of a size that its length does not account",
    ),
    "tensor with hooks": (tensor(hooks=b"}" + text("a") + b"Ns"), "with hooks"),
    "storage beyond its record": (tensor(count=1 << 28), "in a record of 16 bytes"),
    "storage without a record": (tensor(key="1"), "record data/1 that is missing"),
    "storage beside the archive": (tensor(key="../../b"), "record data/../../b that is missing"),
    "booleans": (tensor(count=16, kind="torch.BoolStorage"), "neither 0 nor 1"),
    "reference to something else": (tuple_of(text("module"), number(1)) + b"Q", "not enough values|something else"),
    "storage as a value": (storage(4), "a storage, or an array"),
    "class as a value": (name("numpy.ndarray"), "a name where a value should be|code that it names"),
    "class as a key": (b"}" + name("numpy.ndarray") + b"Ns", "a key of type Name"),
    "class in a set": (called("builtins.set", tuple_of(name("numpy.ndarray"))), "a key of type Name"),
    "attribute that hides a method": (
        called("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88", b"}", b"}" + text("sum") + b"Ns"),
        "attribute sum of a tensor",
    ),
    "call of a value": (text("a") + b")R", "call of something of type str"),
    "registered extension": (b"\x82\x01", "the operation EXT1"),
    "operation of old pickles": (b"I1\n", "the operation INT"),
    "value that is missing": (b"0", "cannot be read"),
    "text where pickle ends": (b"X\xff\xff\xff\x7f", "cannot be read"),
    "long number": (b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000, "whole number of 7999 bits"),
    "nesting": (b"(" * 100_000 + b"t" * 100_000, "cannot be read"),
    "nesting of a key": (b"}" + b")" + b"\x85" * 200_000 + b"Ns", "a key of type tuple"),
    "nesting in a set": (b"\x8f(" + b")" + b"\x85" * 200_000 + b"\x90", "a key of type tuple"),
    "keys that collide": (b"}" + b"".join(long(k * (2**61 - 1)) + b"Ns" for k in range(9)), "a key of 61 bits"),
    "keys of tuples that collide": (b"}" + tuple_of(number(-1), number(-2)) + b"Ns", "negative and among others"),
    "keys of complex numbers": (
        b"}" + called("builtins.complex", *[b"G" + bytes(8)] * 2) + b"Ns",
        "a key of type complex",
    ),
    "name inside a key": (b"}" + tuple_of(name("numpy.ndarray")) + b"Ns", "a key of type Name"),
    "state that is set again and again": (
        b"}q\x01(" + b"".join(text(f"{i:x}") + b"N" for i in range(5000)) + b"u"
        b"(" + name("argparse.Namespace") + b")R" + b"h\x01b" * 10_000 + b"t",
        "more work",
    ),
    "bytes that are made again and again": (
        b"]("
        + (name("_codecs.encode") + b"q\x00" + tuple_of(text("a" * 500_000), text("latin1")) + b"q\x01R")
        + b"h\x00h\x01R" * 4000
        + b"e",
        "more work",
    ),
    "objects": (b"](" + b"\x8f" * 300_000 + b"e", "more work, or more objects"),
    "tensors that are expanded": (
        b"(" + tensor(size=(1 << 28,), stride=(0,)) * 20 + b"t",
        "tensors of a size that its length does not account for",
    ),
    "booleans of another way": (
        called(
            "torch._utils._rebuild_tensor_v3",
            *(storage(16, "torch.storage.UntypedStorage"), number(0), tuple_of(number(4)), tuple_of(number(1))),
            *(b"\x89", b"}", name("torch.bool")),
        ),
        "written in another way",
    ),
    "booleans of bytes": (
        tuple_of(tensor(count=16, kind="torch.ByteStorage"), tensor(count=16, kind="torch.BoolStorage")),
        "neither 0 nor 1",
    ),
    "booleans of numpy": (array((1,), dtype("b1"), bytes_of(b"\x07")), "neither 0 nor 1"),
    "characters of numpy": (array((1,), dtype("U1"), bytes_of(b"\xff\xff\xff\x7f")), "characters that do not exist"),
    "tuple that holds itself": (b"]q\x01h\x01\x85q\x02a0h\x02", "the operation POP"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(tmp_path, what):
    value, words = REFUSED[what]
    path = archive(tmp_path / "evil.pth", value)
    with pytest.raises(ValueError, match=rf"(?s)evil\.pth .*({words})"):
        checkpoint.read(path)


class System:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Module(nn.Module):
    pass


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize(
    ("value", "named", "strange"),
    [
        (System(), "(posix|nt)\\.system", True),
        ([eval, Module()], "builtins\\.eval", True),
        (Module(), "Module", False),
        (pathlib.PurePosixPath("a"), "pathlib\\.PurePosixPath", False),
        (np.array([print], dtype=object), "builtins\\.print", True),
    ],
    ids=["system", "eval", "network", "path", "objects"],
)
def test_nothing_is_executed(tmp_path, monkeypatch, value, named, strange, zip_file):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": value}, "bad.pth", _use_new_zipfile_serialization=zip_file)
    with pytest.raises(ValueError, match=rf"bad\.pth c(.|\n)*(names: .*{named}|numpy data of type)") as raised:
        checkpoint.read("bad.pth")
    assert "weights_only" not in str(raised.value)
    assert ("python" in str(raised.value)) is not strange  # nothing to paste where nobody honest needs it
    assert not os.path.exists("executed")


@pytest.mark.parametrize("zip_file", [True, False])
def test_the_weights_of_a_network_that_was_saved_whole(tmp_path, zip_file):
    net = Net()
    held = {"model": net, "path": pathlib.PurePosixPath("a"), "evil": System(), "epoch": 3}
    torch.save(held, tmp_path / "old.pth", _use_new_zipfile_serialization=zip_file)
    left_out: set[str] = set()
    found = checkpoint.read(tmp_path / "old.pth", left_out=left_out)
    assert equal(dict(net.state_dict()), {name: value.detach() for name, value in found["model"].items()})
    assert (found["path"], found["evil"], found["epoch"]) == (None, None, 3)
    assert {f"{Net.__module__}.Net", "torch.nn.modules.linear.Linear", "pathlib.PurePosixPath"} < left_out
    assert not os.path.exists("executed")


def test_the_advice_for_a_refused_file_works(tmp_path, monkeypatch):
    """The command, pasted into a shell, gives the weights; what stands in the file's name is not executed."""
    monkeypatch.chdir(tmp_path)
    net = Net()
    torch.save({"state_dict": net.state_dict(), "x": Module()}, "w$(touch executed) 'a'.pth")
    with pytest.raises(ValueError, match="Its weights can be read without that") as raised:
        checkpoint.read("w$(touch executed) 'a'.pth")
    python, tool, *arguments = shlex.split(str(raised.value).splitlines()[-1])
    assert (python, tool, arguments[0]) == ("python", "tools/publish.py", "w$(touch executed) 'a'.pth")
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    publish: dict = {"__name__": "publish"}
    exec((Path(__file__).parents[2] / tool).read_text(), publish)
    publish["main"]()
    assert checkpoint.load(Net(), "OUT.safetensors").complete


def test_names_from_a_file_reach_no_terminal_raw(tmp_path):
    path = archive(tmp_path / "\x1b[2J.pth", text("evil\x1b]0;x\x07") + text("Class\u202e" + "x" * 500) + b"\x93")
    with pytest.raises(ValueError, match="evil") as raised:
        checkpoint.read(path)
    assert all(character.isprintable() for character in str(raised.value).replace("\n", ""))
    assert len(str(raised.value)) < 1000
    with pytest.raises(ValueError, match=r"names are no names: a\\x1b\[2J"):
        checkpoint.weights({"a\x1b[2J": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"holds no tensors.*a\\x1b\[2J"):
        checkpoint.weights({"a\x1b[2J": 1})


def test_files_of_another_kind(tmp_path):
    scripted = torch.jit.script(nn.Linear(2, 2))
    torch.jit.save(scripted, str(tmp_path / "script.pth"))
    with pytest.raises(ValueError, match=r"script\.pth .*TorchScript archive, which is a program") as raised:
        checkpoint.read(tmp_path / "script.pth")
    assert "weights_only" not in str(raised.value)
    with tarfile.open(tmp_path / "old.pth", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(ValueError, match=r"old\.pth .*tar archive.*before version 0\.1\.10"):
        checkpoint.read(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("readme", "x")
    with pytest.raises(ValueError, match=r"zip\.pth .*not one of torch\.save"):
        checkpoint.read(tmp_path / "zip.pth")
    (tmp_path / "data.pth").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"data\.pth .*neither of the two formats"):
        checkpoint.read(tmp_path / "data.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list"):
        checkpoint.read(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"map_location=.* must be a device"):
        checkpoint.read(tmp_path / "list.pth", map_location={"cuda:0": "cpu"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing: it is empty"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08", "a gzip archive: unpack it"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"weights", "neither of the two formats"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pth cannot be read as a checkpoint: it holds {words}"):
        checkpoint.read(tmp_path / "a.pth")


def test_formats_are_known_by_their_content(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert checkpoint.read(tmp_path / "a.bin")["state_dict"]["a"] == 1
    torch.save({"a": 1}, tmp_path / "b.safetensors")
    assert checkpoint.read(tmp_path / "b.safetensors") == {"a": 1}
    with pytest.raises(IsADirectoryError, match=r"is a folder\. In it: a\.bin, b\.safetensors"):
        checkpoint.read(tmp_path)
    with pytest.raises(ValueError, match=r"https://example\.com/a\.pth is an address"):
        checkpoint.read("https://example.com/a.pth")


def test_records_within_each_other_are_refused(tmp_path):
    path = archive(tmp_path / "a.pth", tensor(), {"data/0": bytes(1 << 16)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        directory = file.start_dir
    place = content.index(b"a/data/0", directory) - 46
    entry = bytes(content[place : place + 46 + len("a/data/0")])
    end = content.rindex(b"PK\x05\x06")
    more = b"".join(entry.replace(b"a/data/0", f"a/data/{i}".encode()) for i in range(1, 9))
    count = struct.unpack_from("<H", content, end + 10)[0] + 8
    struct.pack_into("<HHI", content, end + 8, count, count, end - directory + len(more))
    path.write_bytes(bytes(content[:end]) + more + bytes(content[end:]))
    with pytest.raises(ValueError, match=r"a\.pth .*longer than the file together: packed, or within each other"):
        checkpoint.read(path)


def test_a_packed_record_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02}" + text("x") + tensor(count=1 << 24, size=(1,)) + b"s.")
        file.writestr("a/data/0", bytes(1 << 26))
    with pytest.raises(ValueError, match="longer than the file together: packed"):
        checkpoint.read(tmp_path / "bomb.pth")


@pytest.mark.parametrize("zip_file", [True, False])
def test_every_cut_of_a_checkpoint_is_noticed(tmp_path, zip_file):
    torch.save({"a": torch.arange(9.0)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_file)
    content = (tmp_path / "a.pth").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pth"):
            checkpoint.read(tmp_path / "cut.pth")
    if zip_file:  # which has a checksum
        place = content.index(struct.pack("<f", 8.0))
        (tmp_path / "cut.pth").write_bytes(content[:place] + b"\1" + content[place + 1 :])
        with pytest.raises(ValueError, match=r"cut\.pth .*Bad CRC"):
            checkpoint.read(tmp_path / "cut.pth")
