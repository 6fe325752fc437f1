"""Reading one shape from one file: a mesh, or a cloud of points."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .formats import READERS, read_gltf, read_npy, read_npz, read_text

# pos (N, 3) float32 or float64, [normal (N, 3), likewise], [face (F, 3) int64], [point_label (N,) int64],
# [color (N, 3) uint8, red, green, blue, of data sets with `colors`]
Shape = dict[str, np.ndarray]

ROUNDING = 1e-5  # of the longest side of a shape: the most that float32 may move a point
TABLES = (".pts", ".txt", ".xyz")
LEICA = ("x", "y", "z", "intensity", "r", "g", "b")  # of a .pts without names
NORMALS = ("nx", "ny", "nz")
SUFFIXES = (*READERS, ".glb", ".gltf", ".npy", ".npz", *TABLES)


def read_shape(path: Path, colors: bool = False) -> Shape:
    """A mesh (.glb .gltf .obj .off .ply .stl) or a cloud (.npy .npz .pcd .ply .pts .txt .xyz).

    A file is held to what it declares (see `formats`). Tables have the columns x y z [nx ny nz]; a .pts may have x y z
    intensity [r g b] as well, and a text whose first line names its columns may have any others. An npz holds one such
    table, or `pos`, and perhaps `normal`, `face` (F, 3) and `point_label` (N,). Its `color` (N, 3), integers of 0 to
    255, is read and checked with `colors` alone, and else left out, whatever it is. Other formats are not read:
    archives, formats of XML (.3mf .dae .x3d) and of CAD have no reader that is safe with any file. Export them as .glb,
    .ply or .obj.

    Points and normals are float32. They are float64 where float32 would lose the shape, because it lies far from the
    origin for its size (half a meter in UTM coordinates): center it first, as `UnitSphere` and `Center` do.

    Raises FileNotFoundError, or ValueError for what cannot be read, is empty, or holds NaN or infinite numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    suffix = path.suffix.lower()
    try:
        if suffix not in SUFFIXES:
            raise ValueError(
                f"files {suffix or 'without a suffix'} are not read; export it as .glb, .ply, .obj or .xyz "
                f"({' '.join(sorted(SUFFIXES))} are read)"
            )
        content = path.read_bytes()
        if not content:
            raise ValueError("the file is empty")
        if suffix == ".npy":
            shape = _columns(read_npy(content))
        elif suffix == ".npz":
            arrays = read_npz(content, colors)
            shape = arrays if "pos" in arrays else _columns(*arrays.values())
        elif suffix in TABLES:
            shape = _text(content, suffix)
        elif suffix in (".glb", ".gltf"):
            shape = read_gltf(content, path.parent)
        else:
            shape = READERS[suffix](content)
        return check_shape(shape)
    except Exception as error:  # each reader has its own kinds of error, and none of them names the file
        raise ValueError(f"{path} is not a readable shape: {error or type(error).__name__}") from error


def check_shape(shape: Shape) -> Shape:
    """`shape` with its dtypes set, or a ValueError that says what is wrong with it."""
    for key, kinds in (("pos", "fiu"), ("normal", "fiu"), ("face", "iu"), ("point_label", "iu")):
        if key in shape and np.asarray(shape[key]).dtype.kind not in kinds:
            raise ValueError(f"{key} is of {np.asarray(shape[key]).dtype}, which is not cast")
    given = np.asarray(shape["pos"])
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
        pos = given.astype(np.float32)
    if pos.ndim != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise ValueError(f"points of shape (N, 3) with N >= 1 were expected, not {pos.shape}")
    if not np.isfinite(pos).all():
        raise ValueError(f"{(~np.isfinite(pos)).any(1).sum()} of {len(pos)} points are NaN or infinite")
    if not fits_float32(given):
        pos = given.astype(np.float64)
    shape["pos"] = pos
    if "normal" in shape:
        normal = shape["normal"] = np.array(shape["normal"], dtype=pos.dtype)
        if normal.shape != pos.shape:
            raise ValueError(f"normals of shape {pos.shape} were expected, not {normal.shape}")
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        bad = ~(np.abs(length - 1) < 0.1)  # NaN too
        if bad.any():
            raise ValueError(f"normals (columns 4 to 6) must have length 1; {bad.sum()} of {len(bad)} have not")
        normal /= length  # files give a few digits
    if "point_label" in shape:
        labels = shape["point_label"] = np.array(shape["point_label"], dtype=np.int64)
        if labels.shape != pos.shape[:1]:
            raise ValueError(f"labels of {len(pos)} points were expected, not {labels.shape}")
    if "color" in shape:
        color = np.asarray(shape["color"])
        if color.shape != pos.shape or color.dtype.kind not in "iu":
            raise ValueError(f"color must be integers {pos.shape} of 0 to 255, not {color.dtype} {color.shape}")
        if color.min() < 0 or color.max() > 255:
            raise ValueError(f"color must be integers of 0 to 255, not {color.min()} to {color.max()}")
        shape["color"] = color.astype(np.uint8)
    if "face" in shape:
        face = shape["face"] = np.array(shape["face"], dtype=np.int64)
        if face.ndim != 2 or face.shape[1] != 3 or len(face) == 0:
            raise ValueError(f"triangles (F, 3) with F >= 1 were expected, not {face.shape}")
        if face.min() < 0 or face.max() >= len(pos):
            raise ValueError(f"faces have corners {face.min()} to {face.max()}; the vertices are 0 to {len(pos) - 1}")
        a, b, c = pos[face].transpose(1, 0, 2).astype(np.float64)
        if not np.cross(b - a, c - a).any():
            raise ValueError("the mesh has no area")
    return shape


def fits_float32(pos: np.ndarray) -> bool:
    """Whether float32 keeps the shape of finite points (N, 3): moves none by more than `ROUNDING` of its size."""
    if pos.dtype == np.float32:
        return True
    size = np.ptp(pos.astype(np.float64), axis=0).max()
    return not size or bool(np.abs(pos - pos.astype(np.float32)).max() <= ROUNDING * size)


def _columns(*tables: np.ndarray, names: Sequence[str] = ()) -> Shape:
    """The coordinates among the columns of one table, and the normals if there are some."""
    table = tables[0] if len(tables) == 1 else np.empty(0)
    if table.ndim != 2 or (table.shape[1] not in (3, 6) and not names):
        got = ", ".join(f"an array of shape {table.shape}" for table in tables) or "nothing"
        raise ValueError(f"columns x y z or x y z nx ny nz were expected, not {got}")
    names = list(names or (*"xyz", *NORMALS)[: table.shape[1]])
    normals = [names.index(name) for name in NORMALS if name in names]
    shape = {"pos": table[:, [names.index(axis) for axis in "xyz"]]}
    return shape | ({"normal": table[:, normals]} if len(normals) == 3 else {})


def _text(content: bytes, suffix: str) -> Shape:
    table, names = read_text(content)
    if not len(table):
        raise ValueError("there are no numbers in it")
    width = table.shape[1]
    if suffix == ".pts" and width in (4, 7):
        names = names or list(LEICA[:width])
    if not names and width not in (3, 6):
        raise ValueError(
            f"columns x y z or x y z nx ny nz were expected, not {width}; a first line such as `x y z intensity` would "
            "name them"
        )
    return _columns(table, names=names)
