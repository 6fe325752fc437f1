"""PLY, which holds meshes and clouds: reading it, and writing clouds with labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...files import printable
from .reading import Arrays, check_rest, fans, integers, lines_of, natural, table_of

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
        lines = lines_of(content[start:])
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
        check_rest(content, start)
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
        return shape | {"face": fans(sizes, integers(corners, "corners of the faces"))}
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
                elements[name] = natural(count, f"the number of elements {name!r}"), properties
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
        table = table_of(lines, f"elements {name!r}")
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
                size = natural(row[at] if at < len(row) else b"", f"the length of a list {key!r}")
                sizes[key].append(size)
                at += 1
            words[key] += row[at : at + size]
            at += size
        if at != len(row):
            raise ValueError(f"the row {line[:60]!r} of the elements {name!r} has not the numbers that it declares")
    columns: Columns = {}
    for key, (_, counted) in properties.items():
        values = table_of(words[key], f"values of {key!r}").ravel()
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
