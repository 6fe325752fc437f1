"""Meshes of vertices and faces: OFF, OBJ, STL."""

import re
import struct
from collections.abc import Sequence

import numpy as np

from .reading import Arrays, fans, integers, lines_of, natural, table_of, three_columns

# --- OFF --------------------------------------------------------------------------------------------------------------


def read_off(content: bytes) -> Arrays:
    """Object File Format: OFF, and with colors (C), normals (N) or texture coordinates (ST), which are not read. The
    counts may follow the keyword without a space, as in files of ModelNet40."""
    lines = lines_of(content, comments=True)
    keyword = re.match(rb"(ST)?C?N?OFF", lines[0]) if lines else None
    if not keyword:
        raise ValueError("the keyword OFF was expected in the first line")
    lines[0] = lines[0][keyword.end() :]
    start = 0 if lines[0].strip() else 1
    counts = lines[start].split() if start < len(lines) else []
    if len(counts) not in (2, 3):
        raise ValueError("the numbers of vertices, faces and edges were expected after OFF")
    vertices, faces = (natural(word, "the number of vertices or faces") for word in counts[:2])
    found = len(lines) - start - 1
    if found != vertices + faces:
        raise ValueError(f"{vertices} vertices and {faces} faces are declared, and {found} lines follow")
    lines = lines[start + 1 :]
    shape = {"pos": three_columns(table_of(lines[:vertices], "vertices"), "vertices")}
    if faces:
        shape["face"] = _off_faces(lines[vertices:])
    return shape


def _off_faces(lines: Sequence[bytes]) -> np.ndarray:
    """Faces `n corner1 ... cornern`, and perhaps a color of one, three or four numbers."""
    colors = (0, 1, 3, 4)
    rows = [line.split() for line in lines]
    sizes = integers(table_of([row[0] for row in rows], "faces"), "faces")[:, 0]
    widths = np.array([len(row) for row in rows]) - 1
    if (wrong := ~np.isin(widths - sizes, colors)).any():
        line = lines[np.flatnonzero(wrong)[0]].decode("latin-1")
        raise ValueError(f"the face {line[:60]!r} has not the corners that its first number declares")
    if (sizes == sizes[0]).all() and (widths == widths[0]).all():
        corners = table_of(lines, "faces")[:, 1 : 1 + sizes[0]]
    else:
        corners = table_of([word for row, size in zip(rows, sizes) for word in row[1 : 1 + size]], "faces")
    return fans(sizes, integers(corners.ravel(), "corners of the faces"))


# --- OBJ --------------------------------------------------------------------------------------------------------------

# Of what a line may begin with: names, looks, and elements without a surface. What is not here has no meaning to us.
OBJ_LEFT_OUT = frozenset(
    b"vn vt g o s l p mg mtllib usemtl maplib usemap bevel c_interp d_interp lod shadow_obj trace_obj".split()
)


def read_obj(content: bytes) -> Arrays:
    """Wavefront OBJ: vertices `v x y z` (a weight or a color may follow) and faces `f`, also with indices that count
    back from the last vertex. Normals, texture coordinates, materials, lines and points are not read, and no other file
    is. A file without faces is refused: a mesh that was cut looks like that."""
    lines = lines_of(content.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "), comments=True)
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
    corners = table_of(faces if even else [word for row in rows for word in row], "faces")
    corners = integers(corners.ravel(), "corners of the faces")
    if (corners == 0).any():
        raise ValueError("a face has the corner 0; vertices count from 1")
    if (corners < 0).any():
        before = np.repeat(np.searchsorted(at_vertex, at_face), sizes)
        if (corners < -before).any():
            raise ValueError("a face counts back before the first vertex")
        corners = np.where(corners < 0, before + corners, corners - 1)
    else:
        corners -= 1
    return {"pos": three_columns(table_of(vertices, "vertices"), "vertices"), "face": fans(sizes, corners)}


# --- STL --------------------------------------------------------------------------------------------------------------

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
    lines = lines_of(content.lower())
    keywords = [line.split(None, 1)[0] for line in lines]
    letters = "".join("." if keyword == b"endsolid" else STL_LETTERS.get(keyword, "?") for keyword in keywords)
    if not re.fullmatch(r"(s(fovvvle)*\.)+", letters):
        raise ValueError("not every solid, facet and loop of three vertices is whole and ended")
    table = table_of([line[6:] for line, keyword in zip(lines, keywords) if keyword == b"vertex"], "vertices")
    if table.shape[1] not in (0, 3):
        raise ValueError(f"the vertices have {table.shape[1]} numbers; x y z were expected")
    return table.reshape(-1, 3)
