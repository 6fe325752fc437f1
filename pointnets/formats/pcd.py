"""PCD, the Point Cloud Library's clouds, and LZF, by which it packs them."""

import struct
from dataclasses import dataclass

import numpy as np

from .reading import Arrays, check_rest, lines_of, natural, table_of

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
        lines = lines_of(content[start:])
        if len(lines) != points:
            raise ValueError(f"{points} points are declared, and {len(lines)} lines follow")
        table = table_of(lines, "points")
        if points and table.shape[1] != width:
            raise ValueError(f"{width} numbers for each point are declared, and {table.shape[1]} were found")
        columns = [table[:, field.numbers] for field in wanted if points]
    elif header["DATA"] == ["binary"]:
        if points * stride > left:
            raise ValueError(f"{points} points of {stride} bytes are declared, which {left} bytes do not hold")
        check_rest(content, start + points * stride)
        columns = [np.ndarray(points, field.dtype, content, start + field.bytes, stride) for field in wanted if points]
    elif header["DATA"] == ["binary_compressed"]:
        packed, whole = struct.unpack_from("<II", content, start) if left >= 8 else (0, -1)
        if whole != points * stride or packed > left - 8 or whole > LZF_RATIO * packed:
            raise ValueError(
                f"{points} points of {stride} bytes are declared, which {packed} compressed bytes of {left - 8} and "
                f"{whole} unpacked ones do not hold"
            )
        check_rest(content, start + 8 + packed)
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
    sizes = [natural(word, "a SIZE") for word in header["SIZE"]]
    counts = [natural(word, "a COUNT") for word in header.get("COUNT", ["1"] * len(names))]
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
            given[key] = natural(header[key][0], key)
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
