"""Tables of numbers: text, and NumPy's .npy and .npz."""

import ast
import codecs
import io
import itertools
import math
import re
import zipfile
from typing import Any

import numpy as np

from .reading import natural, table_of

DEFLATED = 1032  # bytes that a byte of a deflated stream can become, at most

COMMENTS = ("#", "//")  # of text tables


def read_text(content: bytes) -> tuple[np.ndarray, list[str]]:
    """A table of numbers (rows, columns), and the names of its columns, in lower case, where it has some.

    Between the numbers stand spaces or tabs, commas, or semicolons. What follows # or // is a comment. Before the
    numbers one line, which may be a comment, may name the columns, x y z among them, and one may declare how many rows
    there are. A byte order mark is understood.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    headings = list(itertools.takewhile(_is_heading, lines))
    lines = lines[len(headings) :]
    if "#" in text or "//" in text:
        lines = [line for line in (re.split("#|//", line)[0].strip() for line in lines) if line]
    count = natural(lines.pop(0), "the number of points") if lines and lines[0].isdecimal() else None
    first = lines[0] if lines else ""
    delimiter = next((mark for mark in ";," if mark in first), None)
    if delimiter and any(len(field.replace(",", " ").split()) > 1 for field in first.split(delimiter)):
        raise ValueError(f"the line {first[:60]!r} has two kinds of separators; decimal commas are not read")
    table = table_of(lines, "lines", delimiter)
    if count not in (None, len(table)):
        raise ValueError(f"{count} points are declared, and {len(table)} were found")
    words = [line for line in headings if not line.startswith(COMMENTS)]
    for line in words or headings:
        names = [name.strip("\"'").lower() for name in re.split(r"[\s,;]+", line.strip("#/,; \t"))]
        if len(words) < 2 and {"x", "y", "z"} <= set(names) and len(names) == len(set(names)) == table.shape[1]:
            return table, names
    if words:
        raise ValueError(
            f"the line {words[-1][:60]!r} has neither numbers nor the names of the columns, x y z among them"
        )
    return table, []


def _is_heading(line: str) -> bool:
    """Whether a line is a comment, or does not begin with a number."""
    try:
        float(re.split(r"[\s,;]", line, maxsplit=1)[0])
    except ValueError:
        return True
    return False


def read_npy(content: bytes) -> np.ndarray:
    """An array of numbers of an .npy file."""
    return _npy(io.BytesIO(content), len(content))


def read_npz(content: bytes, colors: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name: `pos`, and `normal`, `face`, `point_label`, and with `colors` `color`, if
    they are there; all of them, where `pos` is not."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two arrays have the same name")
        if "pos" in members:
            known = ("pos", "normal", "face", "point_label", *(("color",) if colors else ()))
            members = {key: members[key] for key in known if key in members}
        arrays = {}
        for key, member in members.items():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{key!r} is packed by another way than NumPy's")
            if member.file_size > DEFLATED * min(member.compress_size, len(content)) + 64:
                raise ValueError(f"{key!r} of {member.file_size} bytes is declared, which the file cannot hold")
            with archive.open(member) as file:
                arrays[key] = _npy(file, member.file_size)
        return arrays


def _npy(file: Any, size: int) -> np.ndarray:
    """An array of a stream of `size` bytes. The header is read here: NumPy asks for memory first."""
    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise ValueError("it does not begin as an array of NumPy does")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > min(size, 10_000):
        raise ValueError(f"a header of {length} bytes is declared")
    text = file.read(length).decode("latin-1").strip()
    try:
        header = ast.literal_eval(text)
        kind, turned, shape = header["descr"], header["fortran_order"], header["shape"]
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {text[:60]!r}") from error
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?(f[248]|[iu][1248])", kind):
        raise ValueError(f"an array of numbers was expected, not of {str(kind)[:40]!r}; nothing is ever unpickled")
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"its shape is {str(shape)[:40]}")
    dtype = np.dtype(kind)
    needed = math.prod(shape) * dtype.itemsize
    if needed != size - 8 - width - length:
        raise ValueError(f"an array of shape {shape} is declared, which {size - 8 - width - length} bytes do not hold")
    return np.frombuffer(file.read(needed), dtype).reshape(shape, order="F" if turned is True else "C")
