"""Small files of shapes, byte by byte: what the tests of the readers change and break."""

import base64
import io
import json
import struct
import zipfile

import h5py
import numpy as np
import pytest

from attlas.pointnets.formats.ply import PLY_TYPES

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")  # of PLY
VERTICES = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
FACES = "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
TETRAHEDRON = [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]
POINTS = np.random.default_rng(0).normal(size=(7, 3)).round(3)


def refused(read, name, content, message):
    with pytest.raises(ValueError, match=rf"{name} is not a readable shape: .*{message}"):
        read(name, content)


def pcd(data="ascii", fields="x y z", size="4 4 4", type="F F F", count="1 1 1", points=4, body=VERTICES, **changed):
    entries = dict(
        VERSION=".7", FIELDS=fields, SIZE=size, TYPE=type, COUNT=count, WIDTH=points, HEIGHT=1, POINTS=points, DATA=data
    )
    header = "".join(f"{key} {value}\n" for key, value in (entries | changed).items() if value is not None)
    return header.encode() + (body.encode() if isinstance(body, str) else body)


def lzf(data: bytes) -> bytes:
    """A compressor for tests: runs as they are, and copies from what lies up to 264 bytes before."""
    out, at = b"", 0
    while at < len(data):
        for back in range(1, min(at, 264) + 1):
            length = 0
            while length < 264 and at + length < len(data) and data[at + length] == data[at + length - back]:
                length += 1
            if length > 2:
                break
        else:
            length = 0
        if length > 2:
            more = min(length - 2, 7)
            out += bytes([more << 5 | (back - 1) >> 8])
            out += (bytes([length - 9]) if more == 7 else b"") + bytes([(back - 1) & 255])
            at += length
        else:
            out += b"\0" + data[at : at + 1]
            at += 1
    return out


def ply(form, vertices, faces=None, kinds=("float", "uchar", "int"), extra=()):
    """With another property and another element around what is read."""
    order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    codes = {name: np.dtype(code) for name, code in PLY_TYPES.items()}
    header = f"ply\nformat {form} 1.0\ncomment ä\nelement camera 2\nproperty list uchar float view\nproperty char c\n"
    header += f"element vertex {len(vertices)}\nproperty uchar red\n"
    header += "".join(f"property {kinds[0]} {axis}\n" for axis in "xyz")
    if faces is not None:
        header += f"element face {len(faces)}\nproperty list {kinds[1]} {kinds[2]} vertex_indices\nproperty int flags\n"
    rows = [[("uchar", 1), ("float", 9), ("char", 1)], [("uchar", 0), ("char", 2)]]
    rows += [[("uchar", 255), *((kinds[0], value) for value in vertex)] for vertex in vertices]
    rows += [[(kinds[1], len(face)), *((kinds[2], i) for i in face), ("int", -1)] for face in faces or ()]
    if order is None:
        body = "".join(" ".join(str(value) for _, value in row) + "\n" for row in rows).encode()
    else:
        body = b"".join(np.array(v, codes[k].newbyteorder(order)).tobytes() for row in rows for k, v in row)
    return header.encode("latin-1") + b"end_header\n" + body


def gltf(binary=True, **changed):
    """A tetrahedron, moved and mirrored."""
    index, pos = np.array(TETRAHEDRON, "<u2"), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    data = index.tobytes() + pos.tobytes()
    tree = dict(
        asset=dict(version="2.0"),
        scenes=[dict(nodes=[0])],
        nodes=[dict(children=[1], translation=[1, 2, 3]), dict(mesh=0, scale=[-1, 1, 1], camera=0)],
        meshes=[dict(primitives=[dict(attributes=dict(POSITION=1), indices=0)])],
        accessors=[
            dict(bufferView=0, componentType=5123, count=12, type="SCALAR"),
            dict(bufferView=1, componentType=5126, count=4, type="VEC3"),
        ],
        bufferViews=[
            dict(buffer=0, byteLength=24),
            dict(buffer=0, byteOffset=24, byteLength=48),
        ],
        buffers=[dict(byteLength=72)],
    )
    if not binary:
        tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    for path, value in changed.items():
        *keys, last = path.split("__")
        entry = tree
        for key in keys:
            entry = entry[int(key) if key.isdigit() else key]
        if isinstance(entry, list) and int(last) == len(entry):
            entry.append(value)
        else:
            entry[int(last) if last.isdigit() else last] = value
    text = json.dumps(tree).encode()
    if not binary:
        return text
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def npy(table, **changed) -> bytes:
    entries = dict(descr=table.dtype.str, fortran_order=False, shape=table.shape) | changed
    header = repr(entries).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + table.tobytes()


def npz(packing=zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def h5(compressed: bool) -> bytes:
    """Three shapes as in ScanObjectNN's files."""
    buffer = io.BytesIO()
    options = dict(compression="gzip", shuffle=True) if compressed else {}
    with h5py.File(buffer, "w") as file:
        file.create_dataset("data", data=np.random.default_rng(0).normal(size=(3, 8, 3)).astype("f4"), **options)
        file.create_dataset("label", data=np.array([4, 0, 14], "u1"), **options)
    return buffer.getvalue()


def stl(binary: bool) -> bytes:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")[np.array(TETRAHEDRON)]
    if binary:
        rows = [np.zeros(3, "<f4").tobytes() + triangle.tobytes() + b"\0\0" for triangle in corners]
        return bytes(80) + struct.pack("<I", 4) + b"".join(rows)
    loops = ["".join(f"vertex {x} {y} {z}\n" for x, y, z in triangle) for triangle in corners]
    facets = "".join(f"facet normal 0 0 1\nouter loop\n{loop}endloop\nendfacet\n" for loop in loops)
    return f"solid a\n{facets}endsolid a\n".encode()


def small_files() -> dict[str, bytes]:
    """A whole file of a few hundred bytes for each way to write a shape, by a name that ends in the format's suffix."""
    points = np.random.default_rng(0).normal(size=(12, 3)).round(3)
    normals = np.tile([0.6, 0, 0.8], (12, 1))
    table = np.hstack([points, normals])
    rows = "".join(" ".join(map(str, row)) + "\n" for row in table.tolist())
    fields = dict(
        fields="x y z normal_x normal_y normal_z", size="4 4 4 4 4 4", type="F F F F F F", count="1 1 1 1 1 1"
    )
    fields["points"] = 12
    packed = np.asfortranarray(table.astype("<f4")).tobytes(order="F")
    compressed = struct.pack("<II", len(lzf(packed)), len(packed)) + lzf(packed)
    polygons = [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4, 5, 6), (2, 3, 4)]
    obj = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvn 0 0 1\ng a\nf 1//1 2//1 3//1\nf 1 2 4\nf -4 -2 -1\nf 2 3 4\n"
    return {
        "ascii.pcd": pcd(body=rows, **fields),
        "binary.pcd": pcd("binary", body=table.astype("<f4").tobytes(), **fields),
        "compressed.pcd": pcd("binary_compressed", body=compressed, **fields),
        "ascii.ply": ply("ascii", points, polygons),
        "little.ply": ply("binary_little_endian", points, polygons),
        "big.ply": ply("binary_big_endian", points, [(0, 1, 2), (3, 4, 5)], ("double", "int", "uint")),
        "a.off": f"OFF\n4 4 6\n{VERTICES}{FACES}".encode(),
        "glued.off": f"OFF4 4 0\n# of ModelNet40\n{VERTICES}{FACES}".encode(),
        "a.obj": obj.encode(),
        "binary.stl": stl(True),
        "ascii.stl": stl(False),
        "a.glb": gltf(),
        "a.gltf": gltf(False),
        "a.npy": npy(table),
        "a.npz": npz(pos=npy(points), normal=npy(normals)),
        "stored.npz": npz(zipfile.ZIP_STORED, pos=npy(points), face=npy(np.array([[0, 1, 2]]))),
        "a.txt": rows.replace(" ", ",").encode(),
        "a.xyz": rows.encode(),
        "a.pts": f"12\n{rows}".encode(),
        "contiguous.h5": h5(False),
        "chunked.h5": h5(True),
    }
