"""Reading what torch.save wrote, without calling anything that the file names.

Formats: the zip archive (torch 1.6 and later) and the stream of pickles before it. Every record is held to its declared
length and, in a zip archive, to its checksum. Their pickles run on the machine of `pickle_machine`, which makes only
what stands in `pickle_values`.
"""

import io
import struct
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from .files import printable
from .pickle_machine import Machine
from .pickle_values import STORAGES, Name, Refused, Storage, checked

CHUNK = 2**24


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
    if kind != "storage" or not isinstance(element, Name) or element.text not in STORAGES:
        raise Refused("a reference to something else than a storage")
    checked(key, str, "the key of a storage"), checked(location, str, "the place of a storage")
    if checked(number, int, "the length of a storage") < 0 or len(view) > 1:
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

        def storage(reference: tuple) -> Storage:
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
            return Storage(storages[key], dtype)

        return Machine(storage, length, left_out).run(archive.read(record("data.pkl")))


MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with
PROTOCOL = 1001


def _read_stream(file: IO[bytes], device: torch.device, left_out: set[str] | None) -> Any:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    # no `tell`, which would be asked at every operation; and a file sets aside what it is asked for before it looks
    stream = SimpleNamespace(read=lambda count: file.read(min(count, length)), readline=file.readline)

    def none(_: tuple) -> Storage:
        raise Refused("a storage outside of the data")

    if Machine(none, length).run(stream) != MAGIC or Machine(none, length).run(stream) != PROTOCOL:
        raise Refused("neither of the two formats of torch.save")
    system = Machine(none, length).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("another order of bytes than this machine's")
    # Twice: first over storages without memory, for their lengths come before their bytes
    storages: dict[str, tuple[Tensor, torch.dtype]] = {}

    def storage(reference: tuple) -> Storage:
        key, dtype, number, view = _reference(reference)
        if key not in storages:
            storages[key] = torch.empty(number * dtype.itemsize, dtype=torch.uint8, device="meta"), dtype
        data, first = storages[key]
        if first != dtype or data.numel() != number * dtype.itemsize:
            raise Refused("two references that differ about a storage")
        if view is None:
            return Storage(data, dtype)
        _, start, count = checked(view, tuple, "a storage within another")
        start, count = (checked(value, int, "a storage within another") * dtype.itemsize for value in (start, count))
        if min(start, count) < 0 or start + count > data.numel():
            raise Refused("a storage within another that reaches out of it")
        return Storage(data[start : start + count], dtype)

    begin = file.tell()
    Machine(storage, length, left_out).run(stream)
    keys = Machine(none, length).run(stream)
    if (
        not isinstance(keys, list)
        or len(keys) != len(storages)
        or {checked(k, str, "a key") for k in keys} != storages.keys()
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
    return Machine(storage, length, left_out).run(stream)
