"""Reading one shape from one file: a mesh, or a cloud of points."""

import re
from pathlib import Path
from typing import Any

import numpy as np

# trimesh and Open3D are imported where a file needs them: each takes half a second

CLOUDS = {".npy", ".npz", ".txt", ".xyz", ".pts", ".pcd"}

Shape = dict[str, np.ndarray]  # pos (N, 3) float32, [normal (N, 3) float32], [face (F, 3) int64]


def suffixes() -> set[str]:
    """The suffixes of what `read_shape` reads."""
    import trimesh

    no_meshes = {"bz2", "tar.bz2", "tar.gz", "zip", "dxf", "svg", "xyz"}  # archives, drawings and clouds
    return CLOUDS | {f".{name}" for name in trimesh.available_formats() - no_meshes}


def read_shape(path: Path) -> Shape:
    """A mesh (anything trimesh reads) or a cloud (.npy .npz .txt .xyz .pts .pcd .ply; columns x y z [nx ny nz]).

    An npz holds one array of such columns, or `pos`, and perhaps `normal` and `face` (F, 3).
    Raises FileNotFoundError, or ValueError for what cannot be read, is empty, or holds NaN or infinite numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        if suffix == ".npy":
            shape = _columns(np.load(path, allow_pickle=False))
        elif suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            if "pos" in arrays:
                shape = {key: arrays[key] for key in ("pos", "normal", "face") if key in arrays}
            else:
                shape = _columns(*arrays.values())
        elif suffix in (".txt", ".xyz", ".pts"):
            shape = _columns(_read_text(path))
        elif suffix == ".pcd":
            shape = _read_open3d(path)
        else:
            shape = _read_mesh(path)
        return check_shape(shape)
    except Exception as error:  # each reader has its own kinds of error, and none of them names the file
        raise ValueError(f"{path} is not a readable shape: {error}") from error


def check_shape(shape: Shape) -> Shape:
    """`shape` with its dtypes set, or a ValueError that says what is wrong with it."""
    pos = shape["pos"] = np.asarray(shape["pos"], dtype=np.float32)
    if pos.ndim != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise ValueError(f"points of shape (N, 3) with N >= 1 were expected, not {pos.shape}")
    if not np.isfinite(pos).all():
        raise ValueError(f"{(~np.isfinite(pos)).any(1).sum()} of {len(pos)} points are NaN or infinite")
    if "normal" in shape:
        normal = shape["normal"] = np.array(shape["normal"], dtype=np.float32)
        if normal.shape != pos.shape:
            raise ValueError(f"normals of shape {pos.shape} were expected, not {normal.shape}")
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        bad = ~(np.abs(length - 1) < 0.1)  # NaN too
        if bad.any():
            raise ValueError(f"normals (columns 4 to 6) must have length 1; {bad.sum()} of {len(bad)} have not")
        normal /= length  # files give a few digits
    if "face" in shape:
        face = shape["face"] = np.asarray(shape["face"], dtype=np.int64)
        if face.ndim != 2 or face.shape[1] != 3 or len(face) == 0 or face.min() < 0 or face.max() >= len(pos):
            raise ValueError(f"triangles (F, 3) between the {len(pos)} vertices were expected, not {face.shape}")
        a, b, c = pos[face].transpose(1, 0, 2)
        if not np.cross(b - a, c - a).any():
            raise ValueError("the mesh has no area")
    return shape


def _columns(*tables: np.ndarray) -> Shape:
    table = tables[0] if len(tables) == 1 else np.empty(0)
    if table.ndim != 2 or table.shape[1] not in (3, 6):
        got = ", ".join(f"an array of shape {table.shape}" for table in tables) or "nothing"
        raise ValueError(f"columns x y z or x y z nx ny nz were expected, not {got}")
    return {"pos": table[:, :3]} | ({"normal": table[:, 3:]} if table.shape[1] == 6 else {})


def _read_text(path: Path) -> np.ndarray:
    with path.open() as file:
        first = file.readline()
    count = int(first) if first.strip().isdigit() else None  # .pts files often begin with the number of points
    delimiter = "," if "," in first else None
    table = np.loadtxt(path, np.float32, delimiter=delimiter, skiprows=0 if count is None else 1, ndmin=2)
    if count not in (None, len(table)):
        raise ValueError(f"{count} points are declared, and {len(table)} were found")
    return table


def _read_open3d(path: Path) -> Shape:
    import open3d

    cloud = open3d.io.read_point_cloud(path)
    return {"pos": np.asarray(cloud.points)} | ({"normal": np.asarray(cloud.normals)} if cloud.has_normals() else {})


def _read_mesh(path: Path) -> Shape:
    import trimesh

    mesh: Any = trimesh.load(path, process=False)  # of a class that the file decides
    if isinstance(mesh, trimesh.Scene):
        mesh = mesh.to_mesh()
    if not len(getattr(mesh, "faces", ())):
        return _read_open3d(path) if path.suffix.lower() == ".ply" else {"pos": mesh.vertices}
    if path.suffix.lower() == ".off":  # trimesh takes what is there of a list of faces that was cut off
        declared = re.search(r"OFF\s*\d+\s+(\d+)", re.sub(r"#.*", "", path.read_text(errors="replace")))
        if declared and len(mesh.faces) < int(declared[1]):
            raise ValueError(f"{declared[1]} faces are declared, and {len(mesh.faces)} triangles were found")
    return {"pos": mesh.vertices, "face": mesh.faces}
