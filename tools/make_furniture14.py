"""Build `attlas/furniture14.npz` and its data card from Debian's package `sweethome3d-furniture`.

    python tools/make_furniture14.py                       # apt-get download, build, write (no root needed)
    python tools/make_furniture14.py --package FILE.deb    # from a package that is already here
    python tools/make_furniture14.py --library-dir DIR     # from a folder with the five .sh3f files
    python tools/make_furniture14.py --check               # build into a temporary folder, compare with the shipped asset

Which models, of which class and split, stands in `furniture14.csv` beside this file.
"""

import argparse
import csv
import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open3d as o3d
import trimesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from trimesh.resolvers import ZipResolver

HERE = Path(__file__).resolve().parent
MODELS_CSV = HERE / "furniture14.csv"
ASSET = HERE.parent / "attlas" / "furniture14.npz"
PACKAGE = "sweethome3d-furniture"
LICENCES = {  # as the package's debian/copyright and the LICENSE.TXT inside every library state them
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
MAX_FACES = 2500
FALLBACK_GREY = (160, 160, 160)

# The visibility rule: directions per side of a sample point, samples per mesh (spread by area), and the shares above
# which a sample, and a triangle, counts as visible.
DIRECTIONS = 32
SAMPLES = 6000
MAX_SPLIT = 12
SAMPLE_VISIBLE = 1.5 / DIRECTIONS
TRIANGLE_VISIBLE = 0.25
FLIP_MARGIN = 0.02


@dataclass
class Model:
    """A mesh while it is being made: vertices (V,3) float64 in metres, y up; faces (F,3) int64; colors (F,3) uint8."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray

    def select(self, keep: np.ndarray, flip: np.ndarray) -> "Model":
        faces = np.where(flip[:, None], self.faces[:, ::-1], self.faces)
        return compact(Model(self.vertices, faces[keep], self.colors[keep]))


@dataclass
class Visibility:
    """What an outside observer sees of a mesh's triangles: keep (F,) and flip (F,) bool, and area-weighted shares."""

    keep: np.ndarray
    flip: np.ndarray
    area: np.ndarray
    samples_visible: float = field(default=1.0)
    samples_turned: float = field(default=0.0)


# ---------------------------------------------------------------------------------------------------------- reading


def read_catalog(library: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """The properties of every model in a .sh3f library, keyed by the model's file name."""
    entries: dict[str, dict[str, str]] = {}
    for line in library.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        if match := re.match(r"(\w+)#(\d+)\s*=\s*(.*?)\s*$", line):
            entries.setdefault(match[2], {})[match[1]] = match[3]
    return {entry["model"].lstrip("/"): entry for entry in entries.values() if "model" in entry}


def texture_colors(image, uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F,3) uint8: the texture around the centre of each face, from a 16 x 16 alpha-weighted reduction of the image.

    A face that spans a good part of the texture (a tiled pattern) takes the mean of the whole.
    """
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255 + 1e-6
    rows, columns = (np.linspace(0, size, min(16, size) + 1).astype(int)[:-1] for size in rgba.shape[:2])
    total, weight = (
        np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1) for plane in (rgba[..., :3] * alpha, alpha)
    )
    cells, mean = total / weight, total.sum((0, 1)) / weight.sum((0, 1))
    corner = np.nan_to_num(uv)[faces]
    centre = corner.mean(1) % 1.0
    row = ((1 - centre[:, 1]) * len(rows)).astype(int).clip(0, len(rows) - 1)
    column = (centre[:, 0] * len(columns)).astype(int).clip(0, len(columns) - 1)
    tiled = (np.ptp(corner, axis=1) > 0.5).any(1)
    return np.where(tiled[:, None], mean, cells[row, column]).round().astype(np.uint8)


def face_colors(mesh: trimesh.Trimesh) -> np.ndarray:
    """(F,3) uint8 from a mesh's material: its texture where there is one, else its diffuse colour."""
    material = getattr(mesh.visual, "material", None)
    image, uv = getattr(material, "image", None), getattr(mesh.visual, "uv", None)
    if image is not None and uv is not None and len(uv) == len(mesh.vertices):
        return texture_colors(image, uv, mesh.faces)
    diffuse = getattr(material, "diffuse", None)
    color = FALLBACK_GREY if diffuse is None else diffuse[:3]
    return np.tile(np.asarray(color, dtype=np.uint8), (len(mesh.faces), 1))


def read_model(library: zipfile.ZipFile, name: str) -> Model:
    """A Wavefront OBJ of a library as one mesh in the units and axes of its file."""
    files = {entry: io.BytesIO(library.read(entry)) for entry in library.namelist() if same_folder(entry, name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = trimesh.load_scene(
            io.BytesIO(library.read(name)),
            file_type="obj",
            resolver=ZipResolver(files, namespace=name.rpartition("/")[0]),
            process=False,
            maintain_order=True,
        )
    vertices, faces, colors, start = [], [], [], 0
    for mesh in scene.dump():
        vertices.append(mesh.vertices)
        faces.append(mesh.faces + start)
        colors.append(face_colors(mesh))
        start += len(mesh.vertices)
    return Model(np.concatenate(vertices), np.concatenate(faces).astype(np.int64), np.concatenate(colors))


def same_folder(entry: str, model: str) -> bool:
    return entry.startswith(model.rpartition("/")[0] + "/") and not entry.endswith("/")


def to_metres(model: Model, row: Mapping[str, str], rotation: str | None) -> Model:
    """Turn by the catalog's `modelRotation`, scale to the listed size, and stand on y = 0 around x = z = 0."""
    vertices = model.vertices
    if rotation:
        vertices = vertices @ np.array(rotation.split(), dtype=np.float64).reshape(3, 3).T
    used = vertices[np.unique(model.faces)]
    low, extent = used.min(0), np.ptp(used, axis=0)
    size = np.array([float(row[key]) for key in ("width_cm", "height_cm", "depth_cm")]) / 100
    vertices = (vertices - low) * np.where(extent > 0, size / np.where(extent > 0, extent, 1), 1)
    return Model(vertices - size * [0.5, 0, 0.5], model.faces, model.colors)


# --------------------------------------------------------------------------------------------------------- geometry


def compact(model: Model, digits: int | None = None) -> Model:
    """Weld equal vertices (to `digits` of a metre when given), drop degenerate and repeated triangles."""
    points = model.vertices if digits is None else model.vertices.round(digits)
    points, index = np.unique(points, axis=0, return_inverse=True)
    faces, colors = index.reshape(-1)[model.faces], model.colors
    corner = points[faces]
    doubled_area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    faces, colors = faces[doubled_area > 1e-10], colors[doubled_area > 1e-10]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    first.sort()
    faces, colors = faces[first], colors[first]
    used, faces_flat = np.unique(faces, return_inverse=True)
    return Model(points[used], faces_flat.reshape(-1, 3), colors)


def hemisphere(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the upper half of the sphere (a Fibonacci spiral), z up."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def split_centres(split: int) -> np.ndarray:
    """(split**2, 3) barycentric coordinates: the centroids of the congruent parts of a triangle, split per edge."""
    centres = []
    for i in range(split):
        for j in range(split - i):
            centres.append((i + 1 / 3, j + 1 / 3))
            if i + j < split - 1:
                centres.append((i + 2 / 3, j + 2 / 3))
    u, v = np.array(centres).T / split
    return np.stack([1 - u - v, u, v], axis=1)


def outside_visibility(vertices: np.ndarray, faces: np.ndarray) -> Visibility:
    """Which triangles an observer outside sees, and which of them are wound with their back to the outside.

    From the centroids of a triangle's parts (more parts on a larger triangle), rays leave on both sides in a fixed
    pattern that is built in the frame of the triangle's normal and first edge, mirrored for the back. A ray that hits
    nothing has reached the outside. A triangle is kept where enough of its samples reach the outside on some side, and
    turned when its back reaches more of the outside than its front (beyond a margin: a tie keeps the winding). Nothing
    refers to the axes, so the rule commutes with rotation, translation and scale.

    Args: vertices (V,3) float, faces (F,3) int, no degenerate triangle.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    corner = vertices[faces]
    edge = corner[:, 1] - corner[:, 0]
    normal = np.cross(edge, corner[:, 2] - corner[:, 0])
    area = np.linalg.norm(normal, axis=1) / 2
    normal = normal / (2 * area[:, None])
    edge = edge / np.linalg.norm(edge, axis=1, keepdims=True)
    frame = np.stack([edge, np.cross(normal, edge), normal], axis=1)
    diameter = 2 * np.linalg.norm(vertices - vertices[np.unique(faces)].mean(0), axis=1).max()
    lift = 2e-5 * diameter

    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)), o3d.core.Tensor(np.asarray(faces, dtype=np.uint32)))
    pattern = hemisphere(DIRECTIONS)
    mirrored = pattern * [1, 1, -1]
    split = np.ceil(np.sqrt(area / area.sum() * SAMPLES) - 1e-6).astype(int).clip(1, MAX_SPLIT)
    front, back, share = (np.zeros(len(faces)) for _ in range(3))
    for parts in np.unique(split):
        centres = split_centres(parts)
        group = np.flatnonzero(split == parts)
        for block in np.array_split(group, max(1, len(group) * len(centres) // 20000)):
            origin = np.einsum("sb,fbc->fsc", centres, corner[block])
            escaped = []
            for directions, side in ((pattern, lift), (mirrored, -lift)):
                direction = np.einsum("dk,fkc->fdc", directions, frame[block])
                start = origin + side * normal[block, None]
                rays = np.empty((len(block), len(centres), DIRECTIONS, 6), dtype=np.float32)
                rays[..., :3], rays[..., 3:] = start[:, :, None], direction[:, None]
                escaped.append(~scene.test_occlusions(o3d.core.Tensor(rays)).numpy())
            seen_front, seen_back = (side.mean(2) for side in escaped)
            front[block], back[block] = seen_front.mean(1), seen_back.mean(1)
            share[block] = (np.maximum(seen_front, seen_back) > SAMPLE_VISIBLE).mean(1)
    keep, flip = share >= TRIANGLE_VISIBLE, back > front + FLIP_MARGIN
    visible_area = (area * share).sum()
    return Visibility(
        keep, flip, area, float(visible_area / area.sum()), float((area * share)[flip].sum() / max(visible_area, 1e-12))
    )


def surface_area(model: Model) -> float:
    corner = model.vertices[model.faces]
    return float(np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1).sum() / 2)


def decimate(model: Model, target: int) -> Model:
    """Quadric decimation to about `target` triangles; each takes the colour of the nearest original one."""
    mesh = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(model.vertices), o3d.utility.Vector3iVector(model.faces.astype(np.int32))
    ).simplify_quadric_decimation(target)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(model.vertices.astype(np.float32)), o3d.core.Tensor(model.faces.astype(np.uint32))
    )
    nearest = scene.compute_closest_points(o3d.core.Tensor(vertices[faces].mean(1).astype(np.float32)))
    return compact(Model(vertices, faces, model.colors[nearest["primitive_ids"].numpy().astype(np.int64)]))


def simplify(model: Model) -> Model:
    """At most about MAX_FACES triangles; foliage, which would lose its leaves, gets up to four times as many."""
    if len(model.faces) <= MAX_FACES:
        return model
    for target in (MAX_FACES, 2 * MAX_FACES, 4 * MAX_FACES):
        if len(model.faces) <= target:
            return model
        simple = decimate(model, target)
        if surface_area(simple) >= 0.95 * surface_area(model):
            break
    return simple


def outer_surface(model: Model) -> tuple[Model, Visibility]:
    """The visible, outward-wound, simplified surface of a model, and what was seen of the original one."""
    model = compact(model, digits=6)
    seen = outside_visibility(model.vertices, model.faces)
    simple = simplify(model.select(seen.keep, seen.flip))
    again = outside_visibility(simple.vertices, simple.faces)
    return simple.select(again.keep, again.flip), seen


# ------------------------------------------------------------------------------------------------------------ asset


def pack(models: list[Model], rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """The arrays of the asset: per-model columns, and all vertices (16 bits within each bounding box), faces, colours."""
    classes = sorted({row["label"] for row in rows})
    low = np.array([model.vertices.min(0) for model in models], dtype=np.float32)
    step = np.array([np.ptp(model.vertices, axis=0) for model in models], dtype=np.float32) / np.float32(65535)
    step = np.maximum(step, np.float32(1e-9))
    quantised = [np.rint((m.vertices - lo) / st).clip(0, 65535).astype(np.uint16) for m, lo, st in zip(models, low, step)]

    def column(values) -> np.ndarray:
        return np.array(list(values), dtype=np.str_)

    return {
        "classes": column(classes),
        "label": np.array([classes.index(row["label"]) for row in rows], dtype=np.uint8),
        "split": column(row["split"] for row in rows),
        "library": column(row["library"] for row in rows),
        "model": column(row["model"] for row in rows),
        "name": column(row["name"] for row in rows),
        "author": column(row["creator"] for row in rows),
        "licence": column(LICENCES[row["library"]] for row in rows),
        "vertex_start": np.cumsum([0, *(len(q) for q in quantised)]).astype(np.int32),
        "face_start": np.cumsum([0, *(len(model.faces) for model in models)]).astype(np.int32),
        "low": low,
        "step": step,
        "vertices": np.concatenate(quantised),
        "faces": np.concatenate([model.faces for model in models]).astype(np.uint16),
        "colors": np.concatenate([model.colors for model in models]),
    }


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz whose bytes depend on the arrays only: no times, no pickles. Replaces `path` in one step."""
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)
    os.replace(temporary, path)


# ------------------------------------------------------------------------------------------------------------- main


def fetch_libraries(package: Path | None, folder: Path) -> Path:
    """The folder with the .sh3f files, extracted from the package (downloaded by apt-get when none is given)."""
    if package is None:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
        package = next(folder.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "files")], check=True)
    return folder / "files" / "usr" / "share" / "sweethome3d" / "furniture"


def build(library_dir: Path) -> tuple[dict[str, np.ndarray], list[Visibility]]:
    with MODELS_CSV.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    libraries = {name: zipfile.ZipFile(library_dir / f"{name}.sh3f") for name in LICENCES}
    catalogs = {name: read_catalog(library) for name, library in libraries.items()}
    models, seen = [], []
    columns = (TextColumn("{task.description:28.28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(rows))
        for row in rows:
            progress.update(task, description=f"{row['label']}: {row['name']}")
            rotation = catalogs[row["library"]][row["model"]].get("modelRotation")
            raw = to_metres(read_model(libraries[row["library"]], row["model"]), row, rotation)
            model, visibility = outer_surface(raw)
            models.append(model)
            seen.append(visibility)
            progress.advance(task)
    return pack(models, rows), seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--package", type=Path, help=f"a downloaded {PACKAGE}_*.deb")
    source.add_argument("--library-dir", type=Path, help="a folder that holds the .sh3f files")
    parser.add_argument("--output", type=Path, default=ASSET, help="default: attlas/furniture14.npz")
    parser.add_argument("--check", action="store_true", help="compare a fresh build with the shipped asset, write nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arrays, seen = build(args.library_dir or fetch_libraries(args.package, Path(temporary)))
        write_npz(args.output, arrays)
    print(f"sampled surface that is visible: {100 * np.mean([v.samples_visible for v in seen]):.1f} %")
    print(f"visible surface that was turned: {100 * np.mean([v.samples_turned for v in seen]):.1f} %")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, {len(arrays['faces'])} triangles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
