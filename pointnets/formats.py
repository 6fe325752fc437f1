"""Readers of meshes and clouds that hold a file to what it declares: PCD, PLY, OFF, OBJ, STL, glTF, NumPy's arrays.

Each takes the bytes of a file and gives `pos` (N, 3), and `normal` (N, 3) or `face` (F, 3) where the file has them, as
numbers of any kind. It raises an error, mostly a ValueError, where the file is none of its format, holds fewer or more
than its header declares, or declares what its bytes cannot hold: that is refused before memory is asked for. Polygons
become fans of triangles, in the file's order. Nothing is unpickled.

They are our own because the known readers fill in, cut or skip without a word: Open3D's of PCD takes what a header
lacks from memory that nobody wrote; trimesh drops the rest of a PLY, OBJ or ASCII STL line that is no number, the faces
that an OFF lacks, sparse accessors and the lines after a relative index. What could check a file for them has read it.

What declares nothing cannot be held to it: text tables and OBJ may be cut between two lines, and a text file whose last
line has no newline may have lost digits of its last number.
"""

import ast
import base64
import codecs
import io
import itertools
import json
import math
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ..files import printable

Arrays = dict[str, np.ndarray]

DEFLATED = 1032  # bytes that a byte of a deflated stream can become, at most

COMMENTS = ("#", "//")  # of text tables

# --- text ------------------------------------------------------------------------------------------------------------


def _natural(word: bytes | str, what: str) -> int:
    """A number of things, as a header writes it; no header is right that needs more than 18 digits."""
    if not re.fullmatch(r"[0-9]{1,18}", word if isinstance(word, str) else word.decode("latin-1")):
        raise ValueError(f"{what} is {word!r}; a natural number was expected")
    return int(word)


def _lines(content: bytes, comments: bool = False) -> list[bytes]:
    """The lines that hold something, without the space around them, and without comments (# to the line's end)."""
    lines = content.splitlines()
    if comments and b"#" in content:
        lines = [line.partition(b"#")[0] for line in lines]
    return [line for line in map(bytes.strip, lines) if line]


def _table(lines: Sequence[bytes] | Sequence[str], what: str, delimiter: str | None = None) -> np.ndarray:
    """Lines of numbers, as many in each, as float64 (L, columns)."""
    if not lines:
        return np.empty((0, 0))
    try:
        return np.loadtxt(lines, np.float64, comments=None, delimiter=delimiter, ndmin=2, encoding="latin-1")
    except ValueError as error:
        raise ValueError(f"the {what} are no table of numbers: {str(error).partition(';')[0]}") from error


def _integers(table: np.ndarray, what: str) -> np.ndarray:
    if not (np.abs(table) < 2**53).all() or (table != np.rint(table)).any():  # NaN and infinity too
        raise ValueError(f"the {what} are no integers")
    return table.astype(np.int64)


def _three(table: np.ndarray, what: str) -> np.ndarray:
    """The first three columns; of no lines, none."""
    if len(table) and table.shape[1] < 3:
        raise ValueError(f"the {what} have {table.shape[1]} numbers; x y z were expected")
    return table[:, :3].reshape(-1, 3)


def _fans(sizes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles (F, 3) of polygons: how many corners each has, and the corners of all, one after the other."""
    if len(sizes) and sizes.min() < 3:
        raise ValueError(f"a face has {sizes.min()} corners; 3 are the fewest")
    triangles = sizes - 2
    first = np.repeat(np.cumsum(sizes) - sizes, triangles)
    step = np.arange(len(first)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([corners[first], corners[first + step + 1], corners[first + step + 2]], axis=1)


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
    count = _natural(lines.pop(0), "the number of points") if lines and lines[0].isdecimal() else None
    first = lines[0] if lines else ""
    delimiter = next((mark for mark in ";," if mark in first), None)
    if delimiter and any(len(field.replace(",", " ").split()) > 1 for field in first.split(delimiter)):
        raise ValueError(f"the line {first[:60]!r} has two kinds of separators; decimal commas are not read")
    table = _table(lines, "lines", delimiter)
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


def _rest(content: bytes, start: int) -> None:
    """What follows the data may be line ends and the zeros that fill a block; no more."""
    if rest := content[start:].strip(b"\0\t\n\r "):
        raise ValueError(f"{len(rest)} bytes are left after what the header declares")


# --- OFF -------------------------------------------------------------------------------------------------------------


def read_off(content: bytes) -> Arrays:
    """Object File Format: OFF, and with colors (C), normals (N) or texture coordinates (ST), which are not read. The
    counts may follow the keyword without a space, as in files of ModelNet40."""
    lines = _lines(content, comments=True)
    keyword = re.match(rb"(ST)?C?N?OFF", lines[0]) if lines else None
    if not keyword:
        raise ValueError("the keyword OFF was expected in the first line")
    lines[0] = lines[0][keyword.end() :]
    start = 0 if lines[0].strip() else 1
    counts = lines[start].split() if start < len(lines) else []
    if len(counts) not in (2, 3):
        raise ValueError("the numbers of vertices, faces and edges were expected after OFF")
    vertices, faces = (_natural(word, "the number of vertices or faces") for word in counts[:2])
    found = len(lines) - start - 1
    if found != vertices + faces:
        raise ValueError(f"{vertices} vertices and {faces} faces are declared, and {found} lines follow")
    lines = lines[start + 1 :]
    shape = {"pos": _three(_table(lines[:vertices], "vertices"), "vertices")}
    if faces:
        shape["face"] = _off_faces(lines[vertices:])
    return shape


def _off_faces(lines: Sequence[bytes]) -> np.ndarray:
    """Faces `n corner1 ... cornern`, and perhaps a color of one, three or four numbers."""
    colors = (0, 1, 3, 4)
    rows = [line.split() for line in lines]
    sizes = _integers(_table([row[0] for row in rows], "faces"), "faces")[:, 0]
    widths = np.array([len(row) for row in rows]) - 1
    if (wrong := ~np.isin(widths - sizes, colors)).any():
        line = lines[np.flatnonzero(wrong)[0]].decode("latin-1")
        raise ValueError(f"the face {line[:60]!r} has not the corners that its first number declares")
    if (sizes == sizes[0]).all() and (widths == widths[0]).all():
        corners = _table(lines, "faces")[:, 1 : 1 + sizes[0]]
    else:
        corners = _table([word for row, size in zip(rows, sizes) for word in row[1 : 1 + size]], "faces")
    return _fans(sizes, _integers(corners.ravel(), "corners of the faces"))


# --- OBJ -------------------------------------------------------------------------------------------------------------

# Of what a line may begin with: names, looks, and elements without a surface. What is not here has no meaning to us.
OBJ_LEFT_OUT = frozenset(
    b"vn vt g o s l p mg mtllib usemtl maplib usemap bevel c_interp d_interp lod shadow_obj trace_obj".split()
)


def read_obj(content: bytes) -> Arrays:
    """Wavefront OBJ: vertices `v x y z` (a weight or a color may follow) and faces `f`, also with indices that count
    back from the last vertex. Normals, texture coordinates, materials, lines and points are not read, and no other file
    is. A file without faces is refused: a mesh that was cut looks like that."""
    lines = _lines(content.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "), comments=True)
    keywords = [line.split(None, 1)[0] for line in lines]
    if unknown := set(keywords) - OBJ_LEFT_OUT - {b"v", b"f"}:
        raise ValueError(f"lines that begin with {min(unknown)[:40].decode('latin-1')!r} are not read")
    at_vertex = [i for i, keyword in enumerate(keywords) if keyword == b"v"]
    at_face = [i for i, keyword in enumerate(keywords) if keyword == b"f"]
    if not at_face:
        raise ValueError("there are no faces; a cloud of points is read from .xyz, .ply or .pcd")
    vertices = [lines[i][2:] for i in at_vertex]
    widths = {len(line.split()) for line in vertices}
    if not widths <= {3, 4, 6, 7}:
        raise ValueError(f"a vertex has {min(widths - {3, 4, 6, 7})} numbers; x y z, or with a weight or a color")
    if len(widths) > 1:
        vertices = [b" ".join(line.split()[:3]) for line in vertices]
    # of vertex/texture/normal the first; what is no number after a slash stays, and is refused
    faces = re.sub(rb"/[-0-9/]*", b"", b"\n".join(lines[i][2:] for i in at_face)).split(b"\n")
    rows = [line.split() for line in faces]
    sizes = np.array([len(row) for row in rows])
    even = (sizes == sizes[0]).all()
    corners = _table(faces if even else [word for row in rows for word in row], "faces")
    corners = _integers(corners.ravel(), "corners of the faces")
    if (corners == 0).any():
        raise ValueError("a face has the corner 0; vertices count from 1")
    if (corners < 0).any():
        before = np.repeat(np.searchsorted(at_vertex, at_face), sizes)
        if (corners < -before).any():
            raise ValueError("a face counts back before the first vertex")
        corners = np.where(corners < 0, before + corners, corners - 1)
    else:
        corners -= 1
    return {"pos": _three(_table(vertices, "vertices"), "vertices"), "face": _fans(sizes, corners)}


# --- STL -------------------------------------------------------------------------------------------------------------

STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
STL_LETTERS = {b"solid": "s", b"facet": "f", b"outer": "o", b"vertex": "v", b"endloop": "l", b"endfacet": "e"}


def read_stl(content: bytes) -> Arrays:
    """STL, binary or ASCII; each triangle has vertices of its own."""
    declared = struct.unpack_from("<I", content, 80)[0] if len(content) >= 84 else 0
    if len(content) >= 84 and len(content) == 84 + declared * STL_TRIANGLE.itemsize:
        pos = np.frombuffer(content, STL_TRIANGLE, declared, 84)["corners"].reshape(-1, 3)
    elif content.lstrip()[:5].lower() == b"solid":
        pos = _stl_text(content)
    else:
        raise ValueError(f"{declared} triangles are declared, which is not what {len(content)} bytes hold")
    return {"pos": pos, "face": np.arange(len(pos)).reshape(-1, 3)}


def _stl_text(content: bytes) -> np.ndarray:
    lines = _lines(content.lower())
    keywords = [line.split(None, 1)[0] for line in lines]
    letters = "".join("." if keyword == b"endsolid" else STL_LETTERS.get(keyword, "?") for keyword in keywords)
    if not re.fullmatch(r"(s(fovvvle)*\.)+", letters):
        raise ValueError("not every solid, facet and loop of three vertices is whole and ended")
    table = _table([line[6:] for line, keyword in zip(lines, keywords) if keyword == b"vertex"], "vertices")
    if table.shape[1] not in (0, 3):
        raise ValueError(f"the vertices have {table.shape[1]} numbers; x y z were expected")
    return table.reshape(-1, 3)


# --- PLY -------------------------------------------------------------------------------------------------------------

PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}

# by name: the type of the values, and the type of their number where they are a list
Properties = dict[str, tuple[np.dtype, np.dtype | None]]
# by name: the values (N,), or of a list (sizes (N,), values of all rows)
Columns = dict[str, Any]


def read_ply(content: bytes) -> Arrays:
    """Polygon File Format, ASCII or binary in either order: `x y z` of the vertices, of any type; with a list
    `vertex_indices` of the faces a mesh, otherwise a cloud, perhaps with normals `nx ny nz`. Everything else is held to
    its count, and not read."""
    order, elements, start = _ply_header(content)
    columns: dict[str, Columns] = {}
    if order == "":
        lines = _lines(content[start:])
        declared = sum(count for count, _ in elements.values())
        if len(lines) != declared:
            raise ValueError(f"{declared} rows of elements are declared, and {len(lines)} lines follow")
        at = 0
        for name, (count, properties) in elements.items():
            columns[name] = _ply_text(name, lines[at : at + count], properties)
            at += count
    else:
        for name, (count, properties) in elements.items():
            columns[name], start = _ply_binary(name, content, start, count, properties)
        _rest(content, start)
    vertex, face = columns.get("vertex", {}), columns.get("face", {})
    if not {"x", "y", "z"} <= vertex.keys():
        raise ValueError("an element vertex with properties x, y and z was expected")
    if any(isinstance(vertex[key], tuple) for key in vertex.keys() & {"x", "y", "z", "nx", "ny", "nz"}):
        raise ValueError("a coordinate of the vertices is a list")
    shape = {"pos": np.stack([vertex[key] for key in "xyz"], axis=1)}
    faces, strips = (elements.get(name, (0, {}))[0] for name in ("face", "tristrips"))
    lists = [face[key] for key in ("vertex_indices", "vertex_index") if isinstance(face.get(key), tuple)]
    if strips or (faces and len(lists) != 1):
        raise ValueError("one list vertex_indices of the faces was expected; strips of triangles are not read")
    if faces:
        sizes, corners = lists[0]
        return shape | {"face": _fans(sizes, _integers(corners, "corners of the faces"))}
    if {"nx", "ny", "nz"} <= vertex.keys():
        shape["normal"] = np.stack([vertex[key] for key in ("nx", "ny", "nz")], axis=1)
    return shape


def labelled_ply(
    pos: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    normal: np.ndarray | None = None,
    names: Mapping[int, str] = {},
) -> bytes:
    """A cloud as binary PLY that other viewers show: of each point x y z, perhaps nx ny nz, red green blue and label;
    and in the header a line `comment label 3 chair` for each name.

    Args:
        pos: points (N, 3); written as float32, or as double where they are float64.
        labels: integers (N,).
        colors: uint8 (N, 3).
        normal: normals (N, 3).
        names: names of labels; what is not ASCII is escaped.
    """
    real = "<f8" if pos.dtype == np.float64 else "<f4"
    fields = [(name, real) for name in "xyz"] + [(name, real) for name in ("nx", "ny", "nz") if normal is not None]
    fields += [(name, "<u1") for name in ("red", "green", "blue")] + [("label", "<i4")]
    columns = [*pos.T, *(() if normal is None else normal.T), *colors.T, labels]
    rows = np.empty(len(pos), dtype=fields)
    for (name, _), column in zip(fields, columns):
        rows[name] = column
    words = {"<f8": "double", "<f4": "float", "<u1": "uchar", "<i4": "int"}
    properties = "".join(f"property {words[kind]} {name}\n" for name, kind in fields)
    comments = "".join(f"comment label {label} {printable(name)}\n" for label, name in names.items())
    head = f"ply\nformat binary_little_endian 1.0\n{comments}element vertex {len(rows)}\n{properties}end_header\n"
    return head.encode("ascii", "backslashreplace") + rows.tobytes()


def _ply_header(content: bytes) -> tuple[str, dict[str, tuple[int, Properties]], int]:
    """The order of bytes ("" of ASCII), the elements with their counts and properties, and where the data begin."""
    order: str | None = None
    elements: dict[str, tuple[int, Properties]] = {}
    properties: Properties = {}  # of the last element
    start = 0
    while True:
        end = content.find(b"\n", start)
        if end < 0:
            raise ValueError("no line end_header was found")
        words = content[start:end].decode("latin-1").split()
        if start == 0 and words != ["ply"]:
            raise ValueError("the first line is not 'ply'")
        match words:
            case ["ply"] if start == 0:
                pass
            case ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if order is None and kind in PLY_ORDERS:
                order = PLY_ORDERS[kind]
            case ["element", name, count] if order is not None and name not in elements:
                properties = {}
                elements[name] = _natural(count, f"the number of elements {name!r}"), properties
            case ["property", kind, name] if elements and name not in properties and kind in PLY_TYPES:
                properties[name] = np.dtype(f"{order}{PLY_TYPES[kind]}"), None
            case ["property", "list", size, kind, name] if (
                elements and name not in properties and kind in PLY_TYPES and PLY_TYPES.get(size, "f")[0] != "f"
            ):
                properties[name] = np.dtype(f"{order}{PLY_TYPES[kind]}"), np.dtype(f"{order}{PLY_TYPES[size]}")
            case ["end_header"] if order is not None:
                if empty := [name for name, (count, properties) in elements.items() if count and not properties]:
                    raise ValueError(f"the elements {empty[0]!r} have no properties")
                return order, elements, end + 1
            case _:
                raise ValueError(f"the line {' '.join(words)[:60]!r} is not known in the header, or not there")
        start = end + 1


def _ply_text(name: str, lines: Sequence[bytes], properties: Properties) -> Columns:
    if not lines or all(counted is None for _, counted in properties.values()):
        table = _table(lines, f"elements {name!r}")
        if len(table) and table.shape[1] != len(properties):
            raise ValueError(f"the elements {name!r} have {len(properties)} properties, and {table.shape[1]} numbers")
        return {
            key: table.reshape(len(lines), -1)[:, i] if lines else table.ravel() for i, key in enumerate(properties)
        }
    words: dict[str, list[bytes]] = {key: [] for key in properties}
    sizes: dict[str, list[int]] = {key: [] for key in properties}
    for line in lines:
        row, at = line.split(), 0
        for key, (_, counted) in properties.items():
            size = 1
            if counted is not None:
                size = _natural(row[at] if at < len(row) else b"", f"the length of a list {key!r}")
                sizes[key].append(size)
                at += 1
            words[key] += row[at : at + size]
            at += size
        if at != len(row):
            raise ValueError(f"the row {line[:60]!r} of the elements {name!r} has not the numbers that it declares")
    columns: Columns = {}
    for key, (_, counted) in properties.items():
        values = _table(words[key], f"values of {key!r}").ravel()
        columns[key] = values if counted is None else (np.array(sizes[key]), values)
    return columns


def _ply_binary(name: str, content: bytes, start: int, count: int, properties: Properties) -> tuple[Columns, int]:
    """The columns of an element, and where the next one begins."""
    left = len(content) - start
    least = sum((counted or kind).itemsize for kind, counted in properties.values())
    if count * least > left:
        raise ValueError(f"{count} elements {name!r} of {least} bytes or more are declared, which {left} do not hold")
    if not count:
        return {}, start
    # lists are mostly all as long as those of the first row
    first = [found[0][1] for found in _ply_walk(name, content, start, 1, properties)]
    fields: list[tuple] = []
    lists = [key for key, (_, counted) in properties.items() if counted is not None]
    for size, (key, (kind, counted)) in zip(first, properties.items()):
        fields += [(key, kind)] if counted is None else [(f"{key} size", counted), (key, kind, (size,))]
    dtype = np.dtype(fields)
    if count * dtype.itemsize <= left:
        table = np.frombuffer(content, dtype, count, start)
        sizes = {key: table[f"{key} size"] for key in lists}
        if all((size == size[0]).all() for size in sizes.values()):
            columns: Columns = {key: table[key] for key in properties}
            columns |= {key: (size.astype(np.int64), table[key].reshape(-1)) for key, size in sizes.items()}
            return columns, start + count * dtype.itemsize
    places = _ply_walk(name, content, start, count, properties)
    columns = {}
    for found, (key, (kind, counted)) in zip(places, properties.items()):
        values = np.frombuffer(b"".join(content[at : at + size * kind.itemsize] for at, size in found), kind)
        columns[key] = values if counted is None else (np.array([size for _, size in found]), values)
    at, size = places[-1][-1]
    return columns, at + size * kind.itemsize


def _ply_walk(name: str, content: bytes, start: int, count: int, properties: Properties) -> list[list[tuple[int, int]]]:
    """For each property, where the values of each row lie, and how many they are."""
    places: list[list[tuple[int, int]]] = [[] for _ in properties]
    for _ in range(count):
        for found, (key, (kind, counted)) in zip(places, properties.items()):
            size = 1
            if counted is not None:
                word = content[start : start + counted.itemsize]
                order = "big" if counted.byteorder == ">" else "little"
                size = int.from_bytes(word, order, signed=counted.kind == "i")  # type: ignore[arg-type]
                start += counted.itemsize
            found.append((start, size))
            start += size * kind.itemsize
            if size < 0 or start > len(content):
                raise ValueError(
                    f"a row of the elements {name!r} declares {size} values of {key!r}, which do not follow"
                )
    return places


# --- PCD -------------------------------------------------------------------------------------------------------------

PCD_KEYS = {"VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA"}
PCD_TYPES = {
    "F4": "<f4", "F8": "<f8", "I1": "<i1", "I2": "<i2", "I4": "<i4", "I8": "<i8", "U1": "<u1", "U2": "<u2",
    "U4": "<u4", "U8": "<u8",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """Of a PCD file: so many numbers of a type, and how many numbers and bytes of the fields before it a point has."""

    dtype: np.dtype
    count: int
    numbers: int
    bytes: int


def read_pcd(content: bytes) -> Arrays:
    """Point Cloud Data, ASCII, binary or compressed (LZF): the fields x y z and perhaps normal_x normal_y normal_z, of
    any type and in any place. The viewpoint is not applied."""
    header, start = _pcd_header(content)
    points, fields = _pcd_points(header), _pcd_fields(header)
    width, stride = (
        fields[-1].numbers + fields[-1].count,
        fields[-1].bytes + fields[-1].count * fields[-1].dtype.itemsize,
    )
    names, normals = header["FIELDS"], ["normal_x", "normal_y", "normal_z"]
    wanted = []
    for name in ["x", "y", "z"] + (normals if set(normals) <= set(names) else []):
        if names.count(name) != 1 or fields[names.index(name)].count != 1:
            raise ValueError(f"one field {name!r} of one number was expected among {' '.join(names)[:80]}")
        wanted.append(fields[names.index(name)])
    left = len(content) - start
    if header["DATA"] == ["ascii"]:
        lines = _lines(content[start:])
        if len(lines) != points:
            raise ValueError(f"{points} points are declared, and {len(lines)} lines follow")
        table = _table(lines, "points")
        if points and table.shape[1] != width:
            raise ValueError(f"{width} numbers for each point are declared, and {table.shape[1]} were found")
        columns = [table[:, field.numbers] for field in wanted if points]
    elif header["DATA"] == ["binary"]:
        if points * stride > left:
            raise ValueError(f"{points} points of {stride} bytes are declared, which {left} bytes do not hold")
        _rest(content, start + points * stride)
        columns = [np.ndarray(points, field.dtype, content, start + field.bytes, stride) for field in wanted if points]
    elif header["DATA"] == ["binary_compressed"]:
        packed, whole = struct.unpack_from("<II", content, start) if left >= 8 else (0, -1)
        if whole != points * stride or packed > left - 8 or whole > LZF_RATIO * packed:
            raise ValueError(
                f"{points} points of {stride} bytes are declared, which {packed} compressed bytes of {left - 8} and "
                f"{whole} unpacked ones do not hold"
            )
        _rest(content, start + 8 + packed)
        raw = unpack_lzf(content[start + 8 : start + 8 + packed], whole)  # field after field
        columns = [np.ndarray(points, field.dtype, raw, field.bytes * points) for field in wanted if points]
    else:
        raise ValueError(f"DATA is {' '.join(header['DATA'])[:40]!r}; it may be ascii, binary or binary_compressed")
    if not points:
        raise ValueError("no points are declared")
    pos, normal = np.stack(columns[:3], axis=1), columns[3:]
    return {"pos": pos, "normal": np.stack(normal, axis=1)} if normal else {"pos": pos}


def _pcd_fields(header: dict[str, list[str]]) -> list[Field]:
    names, kinds = header["FIELDS"], header["TYPE"]
    sizes = [_natural(word, "a SIZE") for word in header["SIZE"]]
    counts = [_natural(word, "a COUNT") for word in header.get("COUNT", ["1"] * len(names))]
    if not len(names) == len(sizes) == len(counts) == len(kinds) > 0:
        raise ValueError(f"{len(names)} FIELDS, {len(sizes)} SIZE, {len(kinds)} TYPE and {len(counts)} COUNT are given")
    fields: list[Field] = []
    numbers = place = 0
    for name, size, kind, count in zip(names, sizes, kinds, counts):
        if f"{kind}{size}" not in PCD_TYPES or count < 1:
            raise ValueError(f"field {name!r} is of TYPE {kind}, SIZE {size} and COUNT {count}, which cannot be read")
        fields.append(Field(np.dtype(PCD_TYPES[f"{kind}{size}"]), count, numbers, place))
        numbers, place = numbers + count, place + count * size
    return fields


def _pcd_header(content: bytes) -> tuple[dict[str, list[str]], int]:
    """The words of each entry, and where the data begin."""
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = content.find(b"\n", start)
        if end < 0:
            raise ValueError("no line DATA was found in the header")
        words = content[start:end].decode("latin-1").split()
        start = end + 1
        if words and not words[0].startswith("#"):
            key, *values = words
            if key not in PCD_KEYS or key in header:
                raise ValueError(f"the header has the entry {key[:40]!r} twice, or it is none of a PCD file")
            header[key] = values
    if missing := [key for key in ("FIELDS", "SIZE", "TYPE") if key not in header]:
        raise ValueError(f"the header has no {missing[0]}")
    return header, start


def _pcd_points(header: dict[str, list[str]]) -> int:
    """The number of points, which POINTS and WIDTH times HEIGHT declare."""
    given = {}
    for key in ("POINTS", "WIDTH", "HEIGHT"):
        if key in header:
            if len(header[key]) != 1:
                raise ValueError(f"{key} is {' '.join(header[key])[:40]!r}; a natural number was expected")
            given[key] = _natural(header[key][0], key)
    size = given["WIDTH"] * given.get("HEIGHT", 1) if "WIDTH" in given else given.get("POINTS")
    if size is None or given.get("POINTS", size) != size:
        raise ValueError(f"the number of points is missing, or two were given: {given}")
    return size


LZF_RATIO = 88  # 3 bytes become 264 at most


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """What LZF (Lehmann's LibLZF) made of `size` bytes: runs of up to 32 bytes as they are, and copies of up to 264
    bytes from what was unpacked before."""
    out = bytearray()
    at = 0
    while at < len(packed) and len(out) <= size:
        control = packed[at]
        at += 1
        if control < 32:
            out += packed[at : at + control + 1]
            at += control + 1
            continue
        more = 2 if control >= 224 else 1  # bytes that belong to this copy
        if at + more > len(packed):
            raise ValueError("the compressed data break off")
        length = (control >> 5) + 2 + (packed[at] if more == 2 else 0)
        back = ((control & 31) << 8) + packed[at + more - 1] + 1
        at += more
        if back > len(out):
            raise ValueError("the compressed data refer to bytes before the first")
        piece = out[len(out) - back : len(out) - back + length]
        out += piece if len(piece) == length else (piece * (length // back + 1))[:length]  # a copy may copy itself
    if len(out) != size or at != len(packed):
        raise ValueError(f"the compressed data hold {len(out)} bytes, not {size}")
    return bytes(out)


# --- glTF ------------------------------------------------------------------------------------------------------------

GLTF_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
GLTF_LOOKS = ("KHR_materials_", "KHR_texture_", "KHR_lights_", "EXT_texture_", "KHR_xmp")  # no word on geometry
# A node may stand for a mesh that others stand for too: limits of what a small file can ask for in this way.
GLTF_MOST = 1 << 24  # vertices and triangles, where the buffers do not hold that many bytes
GLTF_PARTS = 100_000  # parts of meshes (primitives)


def read_gltf(content: bytes, folder: Path) -> Arrays:
    """glTF 2.0, as JSON or binary (.glb): the triangles, strips and fans of all meshes of the scene, each where its
    nodes put it. Materials, lines, points, skins and animations are not read; compressed (Draco, meshopt), quantized
    and sparse geometry is refused. Buffers may lie in the file, or in other files of its `folder` or below."""
    return _Gltf(content, folder).read()


class _Gltf:
    def __init__(self, content: bytes, folder: Path):
        self.folder = folder
        self.binary: bytes | None = None
        if content.startswith(b"glTF"):
            content = self._chunks(content)
        self.tree: dict = json.loads(content)
        if not isinstance(self.tree, dict) or not str(self._of(self.tree, "asset", {}).get("version")).startswith("2"):
            raise ValueError("this is no glTF 2.0")
        required = self._of(self.tree, "extensionsRequired", [])
        if other := [name for name in required if not str(name).startswith(GLTF_LOOKS)]:
            raise ValueError(f"it needs the extension {str(other[0])[:60]!r}; export it without")
        self.buffers: dict[str | None, bytes] = {}

    def _chunks(self, content: bytes) -> bytes:
        """The JSON of a binary file; the buffer becomes `self.binary`."""
        version, length = struct.unpack_from("<II", content, 4) if len(content) >= 12 else (0, 0)
        if version != 2 or length != len(content):
            raise ValueError(f"version 2 and {len(content)} bytes were expected, not {version} and {length}")
        at, chunks = 12, []
        while at < length:
            size, kind = struct.unpack_from("<I4s", content, at) if at + 8 <= length else (length, b"")
            if at + 8 + size > length:
                raise ValueError(f"a chunk of {size} bytes is declared, which the file does not hold")
            chunks.append((kind, content[at + 8 : at + 8 + size]))
            at += 8 + size
        if not chunks or chunks[0][0] != b"JSON":
            raise ValueError("the first chunk is not JSON")
        if len(chunks) > 1 and chunks[1][0] == b"BIN\0":
            self.binary = chunks[1][1]
        return chunks[0][1]

    @staticmethod
    def _of(entry: dict, key: str, default: Any) -> Any:
        """`entry[key]`, of the default's kind; a natural number where that is one."""
        value = entry.get(key, default)
        if type(value) is not type(default) or (isinstance(default, int) and value < 0):
            raise ValueError(f"{key} is {str(value)[:40]!r}; a {type(default).__name__} was expected")
        return value

    def _item(self, kind: str, index: Any) -> dict:
        items = self._of(self.tree, kind, [])
        if type(index) is not int or not 0 <= index < len(items) or not isinstance(items[index], dict):
            raise ValueError(f"{kind}[{str(index)[:40]}] does not exist; there are {len(items)}")
        return items[index]

    def _buffer(self, index: Any) -> bytes:
        buffer = self._item("buffers", index)
        uri, size = buffer.get("uri"), self._of(buffer, "byteLength", 0)
        if uri not in self.buffers:
            self.buffers[uri] = self._load(uri)
        held = self.buffers[uri]
        if size > len(held):
            raise ValueError(f"buffers[{index}] of {size} bytes is declared, and {len(held)} were found")
        return held

    def _load(self, uri: Any) -> bytes:
        if uri is None and self.binary is not None:
            return self.binary
        if not isinstance(uri, str):
            raise ValueError("a buffer is missing from the file")
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2], validate=True)
        path = self.folder / unquote(uri)
        if "://" in uri or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"the buffer {uri[:60]!r} lies outside the file's folder")
        if not path.is_file():
            raise ValueError(f"the buffer {uri[:60]!r} is missing from the file's folder")
        return path.read_bytes()

    def _accessor(self, index: Any, kind: str, components: Sequence[int]) -> np.ndarray:
        """The numbers (count, columns) of an accessor, as a view."""
        accessor = self._item("accessors", index)
        if "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError(f"accessors[{index}] is sparse or compressed, which is not read; export it without")
        component = self._of(accessor, "componentType", 0)
        if accessor.get("type") != kind or component not in components:
            raise ValueError(f"accessors[{index}] is no {kind} of a type that is read")
        view = self._item("bufferViews", accessor["bufferView"])
        held = self._buffer(view.get("buffer"))
        dtype, columns = np.dtype(GLTF_TYPES[component]), {"SCALAR": 1, "VEC3": 3}[kind]
        count, row = self._of(accessor, "count", 0), columns * dtype.itemsize
        offset, length = self._of(view, "byteOffset", 0), self._of(view, "byteLength", 0)
        stride, inside = self._of(view, "byteStride", row), self._of(accessor, "byteOffset", 0)
        if count < 1 or stride < row or offset + length > len(held) or inside + (count - 1) * stride + row > length:
            raise ValueError(f"accessors[{index}] of {count} times {row} bytes lies outside its buffer")
        return np.ndarray((count, columns), dtype, held, offset + inside, (stride, dtype.itemsize))

    def _triangles(self, primitive: dict) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (N, 3) and triangles (F, 3); of points and lines, none."""
        mode = self._of(primitive, "mode", 4)
        if mode > 6:
            raise ValueError(f"the mode of a primitive is {mode}; it may be 0 to 6")
        if mode < 4:
            return np.empty((0, 3)), np.empty((0, 3), np.int64)
        pos = self._accessor(self._of(primitive, "attributes", {}).get("POSITION"), "VEC3", (5126,))
        if "indices" in primitive:
            index = self._accessor(primitive["indices"], "SCALAR", (5121, 5123, 5125)).ravel().astype(np.int64)
        else:
            index = np.arange(len(pos))
        if index.max() >= len(pos):
            raise ValueError(f"a triangle has the corner {index.max()}, and there are {len(pos)} vertices")
        if mode == 4:
            if len(index) % 3:
                raise ValueError(f"{len(index)} corners do not make triangles")
            return pos, index.reshape(-1, 3)
        if len(index) < 3:
            raise ValueError(f"{len(index)} corners do not make a strip or fan of triangles")
        step = np.arange(len(index) - 2)
        if mode == 6:
            return pos, np.stack([np.full(len(step), index[0]), index[1:-1], index[2:]], axis=1)
        odd = step % 2  # every other triangle of a strip is turned
        return pos, np.stack([index[step], index[step + 1 + odd], index[step + 2 - odd]], axis=1)

    @staticmethod
    def _matrix(node: dict) -> np.ndarray:
        """The transform (4, 4) of a node."""

        def numbers(key: str, default: Sequence[float]) -> np.ndarray:
            values = np.array(node.get(key, default), dtype=np.float64)
            if values.shape != (len(default),):
                raise ValueError(f"the {key} of a node has not {len(default)} numbers")
            return values

        if "matrix" in node:
            return numbers("matrix", [0.0] * 16).reshape(4, 4).T
        x, y, z, w = numbers("rotation", (0, 0, 0, 1))
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, :3] *= numbers("scale", (1, 1, 1))
        matrix[:3, 3] = numbers("translation", (0, 0, 0))
        return matrix

    def read(self) -> Arrays:
        nodes = self._of(self.tree, "nodes", [])
        if self._of(self.tree, "scenes", []):
            roots = self._of(self._item("scenes", self.tree.get("scene", 0)), "nodes", [])
        else:
            children = {
                child for node in range(len(nodes)) for child in self._of(self._item("nodes", node), "children", [])
            }
            roots = [node for node in range(len(nodes)) if node not in children]
        waiting = [(root, np.eye(4)) for root in roots]
        visited: set[int] = set()
        positions: list[np.ndarray] = []
        faces: list[np.ndarray] = []
        vertices = size = parts = 0
        while waiting:
            index, above = waiting.pop()
            node = self._item("nodes", index)
            if index in visited:
                raise ValueError(f"nodes[{index}] stands twice in the scene, which must be a tree")
            visited.add(index)
            matrix = above @ self._matrix(node)
            waiting += [(child, matrix) for child in self._of(node, "children", [])]
            for primitive in self._of(self._item("meshes", node["mesh"]), "primitives", []) if "mesh" in node else []:
                pos, face = self._triangles(primitive)
                parts += 1
                size += len(pos) + len(face)
                if parts > GLTF_PARTS or size > max(GLTF_MOST, sum(map(len, self.buffers.values()))):
                    raise ValueError(
                        f"its nodes repeat meshes up to {parts:,} parts and {size:,} vertices and triangles"
                    )
                positions.append(pos @ matrix[:3, :3].T + matrix[:3, 3])
                # a reflection turns the triangles
                faces.append((face[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else face) + vertices)
                vertices += len(pos)
        if not vertices:
            raise ValueError("there are no triangles in the scene")
        return {"pos": np.concatenate(positions), "face": np.concatenate(faces)}


# --- NumPy -----------------------------------------------------------------------------------------------------------


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


READERS = {".obj": read_obj, ".off": read_off, ".pcd": read_pcd, ".ply": read_ply, ".stl": read_stl}
