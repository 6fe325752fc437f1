"""Build `attlas/furniture14.npz` and its data card from Debian's package `sweethome3d-furniture`.

    python tools/make_furniture14.py                       # apt-get download, build, write (no root needed)
    python tools/make_furniture14.py --package FILE.deb    # from a package that is already here
    python tools/make_furniture14.py --library-dir DIR     # from a folder with the five .sh3f files
    python tools/make_furniture14.py --check               # build aside, compare with the shipped asset
    python tools/make_furniture14.py --draw-parts FILE     # a picture of the parts that the shipped asset has

Which models, of which class and split, stands in `furniture14.csv` beside this file; which materials of a model make up
which of its parts, in `furniture14_parts.csv`.
"""

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import open3d as o3d
import PIL.Image
import PIL.ImageDraw
import trimesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from trimesh.resolvers import ZipResolver

from attlas.files import replacing
from attlas.furniture import CLASSES, NO_PART, PARTS, load
from attlas.rendering import snapshots, surface, view_direction

HERE = Path(__file__).resolve().parent
MODELS_CSV = HERE / "furniture14.csv"
PARTS_CSV = HERE / "furniture14_parts.csv"
CARD = HERE / "furniture14_card.md"
ASSET = HERE.parent / "attlas" / "furniture14.npz"
PACKAGE = "sweethome3d-furniture"
LICENSES = {  # as the package's debian/copyright and the LICENSE.TXT inside every library state them
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
MAX_FACES = 2500
MAX_LEAVES = 2000
FALLBACK_GRAY = (160, 160, 160)

# The visibility rule: directions per side of a sample point, samples per mesh (spread by area), and the shares above
# which a sample, and a triangle, counts as visible.
DIRECTIONS = 32
SAMPLES = 6000
MAX_SPLIT = 12
SAMPLE_VISIBLE = 1.5 / DIRECTIONS
TRIANGLE_VISIBLE = 0.25
TURN_RATIO = 1.5
LIFT = 2e-5  # of the diameter: where rays start above the surface


@dataclass
class Model:
    """A mesh while it is being made: vertices (V,3) float64 in meters, y up; faces (F,3) int64; colors (F,3) uint8;
    parts (F,) uint8, numbers of PARTS, or NO_PART."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    parts: np.ndarray

    def select(self, keep: np.ndarray, flip: np.ndarray) -> "Model":
        faces = np.where(flip[:, None], self.faces[:, ::-1], self.faces)
        return compact(Model(self.vertices, faces[keep], self.colors[keep], self.parts[keep]))

    def area(self) -> float:
        return float(triangle_areas(self.vertices, self.faces).sum())


@dataclass
class Visibility:
    """Of a mesh's triangles: keep and flip (F,) bool, visible share of each (F,) and area (F,)."""

    keep: np.ndarray
    flip: np.ndarray
    share: np.ndarray
    area: np.ndarray

    @property
    def visible(self) -> float:
        """The part of the surface that is visible."""
        return float((self.share * self.area).sum() / self.area.sum())

    @property
    def turned(self) -> float:
        """The part of the visible surface that has to be turned."""
        seen = self.share * self.area
        return float(seen[self.flip].sum() / seen.sum())


# ---------------------------------------------------------------------------------------------------------- reading


def read_catalog(library: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """The properties of every model in a .sh3f library, keyed by the model's file name."""
    entries: dict[str, dict[str, str]] = {}
    for line in library.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        if match := re.match(r"(\w+)#(\d+)\s*=\s*(.*?)\s*$", line):
            entries.setdefault(match[2], {})[match[1]] = match[3]
    return {entry["model"].lstrip("/"): entry for entry in entries.values() if "model" in entry}


def texture_colors(image: PIL.Image.Image, uv: np.ndarray | None, faces: np.ndarray) -> np.ndarray:
    """(F,3) uint8: the texture around the center of each face, from a 16 x 16 alpha-weighted reduction of the image.

    A face that spans a good part of the texture (a tiled pattern) or has no coordinates takes the mean of the whole.
    """
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255 + 1e-6
    rows, columns = (np.linspace(0, size, min(16, size) + 1).astype(int)[:-1] for size in rgba.shape[:2])
    total, weight = (
        np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
        for plane in (rgba[..., :3] * alpha, alpha)
    )
    cells, mean = total / weight, total.sum((0, 1)) / weight.sum((0, 1))
    if uv is None or len(uv) <= faces.max():
        return np.tile(mean.round().astype(np.uint8), (len(faces), 1))
    corner = np.nan_to_num(uv)[faces]
    center = corner.mean(1) % 1.0
    row = ((1 - center[:, 1]) * len(rows)).astype(int).clip(0, len(rows) - 1)
    column = (center[:, 0] * len(columns)).astype(int).clip(0, len(columns) - 1)
    tiled = (np.ptp(corner, axis=1) > 0.5).any(1)
    return np.where(tiled[:, None], mean, cells[row, column]).round().astype(np.uint8)


def face_colors(mesh: trimesh.Trimesh) -> np.ndarray:
    """(F,3) uint8 from a mesh's material: its texture where there is one, else its diffuse color."""
    material = getattr(mesh.visual, "material", None)
    if (image := getattr(material, "image", None)) is not None:
        return texture_colors(image, getattr(mesh.visual, "uv", None), mesh.faces)
    diffuse = getattr(material, "diffuse", None)
    color = FALLBACK_GRAY if diffuse is None else diffuse[:3]
    return np.tile(np.asarray(color, dtype=np.uint8), (len(mesh.faces), 1))


def read_parts() -> dict[str, dict[str, int]]:
    """The number of the part that each material of a model stands for, by model and material."""
    found: dict[str, dict[str, int]] = {}
    with PARTS_CSV.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for material in row["materials"].split("; "):
                found.setdefault(row["model"], {})[material] = PARTS.index(row["part"])
    return found


def read_model(library: zipfile.ZipFile, name: str, part_of: Mapping[str, int] | None = None) -> Model:
    """A Wavefront OBJ of a library as one mesh in the units and axes of its file.

    Args:
        library: the opened .sh3f file.
        name: the model's path in it.
        part_of: number of the part of each of its materials (`read_parts`); None for a model without parts.

    Raises:
        ValueError: a material of the model is in no part, or one that `part_of` names is not in the model.
    """
    files = {entry: io.BytesIO(library.read(entry)) for entry in library.namelist() if same_folder(entry, name)}
    text = library.read(name)
    if wanted := re.search(
        rb"^mtllib +(.+?)\s*$", text, re.MULTILINE
    ):  # one model names a file that lies there renamed
        own_materials = [entry for entry in files if entry.endswith(".mtl")]
        if len(own_materials) == 1:
            files.setdefault(f"{name.rpartition('/')[0]}/{wanted[1].decode()}", files[own_materials[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = trimesh.load_scene(
            io.BytesIO(text),
            file_type="obj",
            resolver=ZipResolver(files, namespace=name.rpartition("/")[0]),
            process=False,
        )
    vertices, faces, colors, materials, start = [], [], [], [], 0
    for mesh in scene.dump():
        if not isinstance(mesh, trimesh.Trimesh):  # lines and points have no surface
            continue
        vertices.append(mesh.vertices)
        faces.append(mesh.faces + start)
        colors.append(face_colors(mesh))
        materials.append(str(getattr(getattr(mesh.visual, "material", None), "name", None)))
        start += len(mesh.vertices)
    if part_of is not None and set(materials) != set(part_of):
        odd = ", ".join(sorted(set(materials) ^ set(part_of)))
        raise ValueError(f"{name}: {PARTS_CSV.name} and the model do not name the same materials ({odd})")
    numbers = [NO_PART if part_of is None else part_of[material] for material in materials]
    parts = np.repeat(np.array(numbers, dtype=np.uint8), [len(group) for group in faces])
    return Model(np.concatenate(vertices), np.concatenate(faces).astype(np.int64), np.concatenate(colors), parts)


def same_folder(entry: str, model: str) -> bool:
    return entry.startswith(model.rpartition("/")[0] + "/") and not entry.endswith("/")


def to_meters(model: Model, row: Mapping[str, str], rotation: str | None = None) -> Model:
    """Turn by the catalog's `modelRotation`, scale to the listed size, and stand on y = 0 around x = z = 0."""
    vertices = model.vertices
    if rotation:
        vertices = vertices @ np.array(rotation.split(), dtype=np.float64).reshape(3, 3).T
    used = vertices[np.unique(model.faces)]
    low, extent = used.min(0), np.ptp(used, axis=0)
    size = np.array([float(row[key]) for key in ("width_cm", "height_cm", "depth_cm")]) / 100
    vertices = (vertices - low) * np.where(extent > 0, size / np.where(extent > 0, extent, 1), 1)
    return Model(vertices - size * [0.5, 0, 0.5], model.faces, model.colors, model.parts)


# --------------------------------------------------------------------------------------------------------- geometry


def compact(model: Model, digits: int | None = None) -> Model:
    """Weld equal vertices (to `digits` of a metre when given), drop degenerate and repeated triangles."""
    points = model.vertices if digits is None else model.vertices.round(digits)
    points, index = np.unique(points, axis=0, return_inverse=True)
    faces = index.reshape(-1)[model.faces]
    solid = np.flatnonzero(triangle_areas(points, faces) > 1e-11)
    _, first = np.unique(np.sort(faces[solid], axis=1), axis=0, return_index=True)
    kept = solid[np.sort(first)]
    used, faces_flat = np.unique(faces[kept], return_inverse=True)
    return Model(points[used], faces_flat.reshape(-1, 3), model.colors[kept], model.parts[kept])


def triangle_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corner = vertices[faces]
    return np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1) / 2


def raycasting_scene(vertices: np.ndarray, faces: np.ndarray) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(vertices.astype(np.float32)), o3d.core.Tensor.from_numpy(faces.astype(np.uint32))
    )
    return scene


def hemisphere(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the upper half of the sphere (a Fibonacci spiral), z up."""
    z = (np.arange(count) + 0.5) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def split_centers(split: int) -> np.ndarray:
    """(split**2, 3) barycentric coordinates: the centroids of the congruent parts of a triangle, split per edge."""
    centers = []
    for i in range(split):
        for j in range(split - i):
            centers.append((i + 1 / 3, j + 1 / 3))
            if i + j < split - 1:
                centers.append((i + 2 / 3, j + 2 / 3))
    u, v = np.array(centers).T / split
    return np.stack([1 - u - v, u, v], axis=1)


def winding_patches(faces: np.ndarray) -> np.ndarray:
    """(F,) int: the patch of consistent winding that each triangle belongs to.

    Two triangles are of one patch when they alone share an edge and run through it in opposite directions.
    """
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    owner = np.tile(np.arange(len(faces)), 3)
    forward = directed[:, 0] < directed[:, 1]
    _, edge, count = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True, return_counts=True)
    edge = edge.reshape(-1)
    net = np.bincount(edge, weights=np.where(forward, 1, -1), minlength=len(count))
    inner = np.flatnonzero(((count == 2) & (net == 0))[edge])
    pairs = owner[inner[np.argsort(edge[inner], kind="stable")]].reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(faces), len(faces)))
    return connected_components(graph, directed=False)[1]


def escaping_rays(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of rays that leave the mesh from each triangle's front and back (F,), and its visible samples' share.

    From the centroids of a triangle's parts (more parts on a larger triangle) rays leave in a fixed pattern that is
    built in the frame of the triangle's normal and first edge, mirrored for the back.
    """
    corner = vertices[faces]
    edge = corner[:, 1] - corner[:, 0]
    normal = np.cross(edge, corner[:, 2] - corner[:, 0])
    doubled_area = np.linalg.norm(normal, axis=1, keepdims=True)
    normal, edge = normal / doubled_area, edge / np.linalg.norm(edge, axis=1, keepdims=True)
    frame = np.stack([edge, np.cross(normal, edge), normal], axis=1)
    lift = LIFT * 2 * np.linalg.norm(vertices - vertices.mean(0), axis=1).max()
    scene = raycasting_scene(vertices, faces)
    pattern = hemisphere(DIRECTIONS)
    split = np.ceil(np.sqrt(doubled_area[:, 0] / doubled_area.sum() * SAMPLES) - 1e-6).astype(int).clip(1, MAX_SPLIT)
    front, back, share = (np.zeros(len(faces)) for _ in range(3))
    for parts in np.unique(split):
        centers = split_centers(parts)
        group = np.flatnonzero(split == parts)
        for block in np.array_split(group, len(group) * len(centers) // 20000 + 1):
            origin = np.einsum("sb,fbc->fsc", centers, corner[block])
            escaped = []
            for side in (1, -1):
                direction = np.einsum("dk,fkc->fdc", pattern * [1, 1, side], frame[block])
                rays = np.empty((len(block), len(centers), DIRECTIONS, 6), dtype=np.float32)
                rays[..., :3] = (origin + side * lift * normal[block, None])[:, :, None]
                rays[..., 3:] = direction[:, None]
                escaped.append(~scene.test_occlusions(o3d.core.Tensor.from_numpy(rays)).numpy())
            seen_front, seen_back = (side.mean(2) for side in escaped)
            front[block], back[block] = seen_front.mean(1), seen_back.mean(1)
            share[block] = (np.maximum(seen_front, seen_back) > SAMPLE_VISIBLE).mean(1)
    return front, back, share


def outside_visibility(vertices: np.ndarray, faces: np.ndarray) -> Visibility:
    """Which triangles an observer outside sees, and which of them are wound with their back to the outside.

    A ray from a triangle that hits nothing has reached the outside. A triangle is kept where enough of its samples
    reach the outside on some side. One that is seen from a single side shows its front there. One that is seen from
    both sides (a leaf, a lampshade) goes with the patch of consistent winding it belongs to, which is turned when its
    back sees clearly more of the outside than its front. Nothing refers to the axes, so the rule commutes with
    rotation, translation and scale.

    Args: vertices (V,3) float, faces (F,3) int, no degenerate triangle.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    front, back, share = escaping_rays(vertices, faces)
    area = triangle_areas(vertices, faces)
    patch = winding_patches(faces)
    patch_front, patch_back = (np.bincount(patch, weights=area * side) for side in (front, back))
    single_sided = np.minimum(front, back) <= SAMPLE_VISIBLE
    flip = np.where(single_sided, back > front, (patch_back > TURN_RATIO * patch_front)[patch])
    return Visibility(share >= TRIANGLE_VISIBLE, flip, share, area)


def decimate(model: Model, target: int) -> Model:
    """Quadric decimation to about `target` triangles; each takes color and part of the nearest original one."""
    mesh = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(model.vertices), o3d.utility.Vector3iVector(model.faces.astype(np.int32))
    ).simplify_quadric_decimation(target)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64)
    nearest = raycasting_scene(model.vertices, model.faces).compute_closest_points(
        o3d.core.Tensor.from_numpy(vertices[faces].mean(1).astype(np.float32))
    )
    origin = nearest["primitive_ids"].numpy().astype(np.int64)
    return compact(Model(vertices, faces, model.colors[origin], model.parts[origin]))


def thin_out(model: Model, max_pieces: int) -> Model:
    """Foliage with fewer and larger leaves: a random choice of the small connected pieces, enlarged to keep the area.

    Decimation alone would leave less than a triangle to many of the thousands of leaves of a tree (the idea is that of
    Cook, Halstead, Planck and Ryu, Stochastic Simplification of Aggregate Detail, SIGGRAPH 2007).
    """
    faces = model.faces
    graph = coo_matrix(
        (np.ones(2 * len(faces)), faces[:, [0, 1, 1, 2]].reshape(-1, 2).T), shape=(len(model.vertices),) * 2
    )
    count, piece = connected_components(graph, directed=False)
    area = np.bincount(piece[faces[:, 0]], weights=triangle_areas(model.vertices, faces), minlength=count)
    size = np.bincount(piece, minlength=count)
    center = np.stack([np.bincount(piece, weights=axis) / size for axis in model.vertices.T], axis=1)
    offset = model.vertices - center[piece]
    radius = np.zeros(count)
    np.maximum.at(radius, piece, np.linalg.norm(offset, axis=1))
    small = np.flatnonzero(radius < 0.03 * np.linalg.norm(np.ptp(model.vertices, axis=0)))
    chosen = np.random.default_rng(0).permutation(small)[:max_pieces]
    scale = np.ones(count)
    if len(chosen):  # a model without small pieces keeps what it has
        scale[chosen] = np.sqrt(area[small].sum() / area[chosen].sum())
    vertices = center[piece] + scale[piece, None] * offset
    kept = ~np.isin(piece[faces[:, 0]], np.setdiff1d(small, chosen))
    return compact(Model(vertices, faces[kept], model.colors[kept], model.parts[kept]))


def simplify(model: Model) -> Model:
    """At most about MAX_FACES triangles, up to four times as many where fewer would lose surface or extent."""
    for target in (MAX_FACES, 2 * MAX_FACES, 4 * MAX_FACES):
        if len(model.faces) <= target:
            return model
        simple = decimate(model, target)
        kept_extent = np.ptp(simple.vertices, axis=0) / np.ptp(model.vertices, axis=0)
        if simple.area() >= 0.95 * model.area() and kept_extent.min() >= 0.98:
            return simple
    if simple.area() < 0.9 * model.area():
        simple = decimate(thin_out(model, MAX_LEAVES), 2 * target)
    return simple


def outer_surface(model: Model, row: Mapping[str, str]) -> tuple[Model, Visibility]:
    """The visible, outward-wound, simplified surface of a model in meters, and what was seen of the original."""
    model = compact(model, digits=6)
    seen = outside_visibility(model.vertices, model.faces)
    simple = simplify(model.select(seen.keep, seen.flip))
    hidden = ~outside_visibility(simple.vertices, simple.faces).keep  # decimation pushes a few below others
    metric = to_meters(simple.select(~hidden, np.zeros_like(hidden)), row)
    low, step = grid(metric.vertices)
    snapped = low + step * np.rint((metric.vertices - low) / step)  # what is stored must hold no degenerate triangle
    return compact(Model(snapped, metric.faces, metric.colors, metric.parts)), seen


def grid(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corner and the cell (3,) float32 of the 16-bit grid that stores these vertices."""
    low = vertices.min(0).astype(np.float32)
    return low, np.maximum((vertices.max(0) - low).astype(np.float32) / np.float32(65535), np.float32(1e-9))


# ------------------------------------------------------------------------------------------------------------ asset


def pack(models: list[Model], rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """The arrays of the asset: a column per property, and the vertices (16 bits within each bounding box), faces, and
    colors and parts of faces, of all models end to end."""
    classes = sorted({row["label"] for row in rows})
    low, step = (np.stack(column) for column in zip(*(grid(model.vertices) for model in models)))
    cells = [np.rint((m.vertices - lo) / st).clip(0, 65535).astype(np.uint16) for m, lo, st in zip(models, low, step)]
    columns = {"split": "split", "library": "library", "model": "model", "name": "name", "author": "creator"}
    return {
        "classes": np.array(classes),
        "label": np.array([classes.index(row["label"]) for row in rows], dtype=np.uint8),
        **{name: np.array([row[key] for row in rows]) for name, key in columns.items()},
        "licence": np.array([row["license"] for row in rows]),
        "vertex_start": np.cumsum([0, *map(len, cells)]).astype(np.int32),
        "face_start": np.cumsum([0, *(len(model.faces) for model in models)]).astype(np.int32),
        "low": low,
        "step": step,
        "vertices": np.concatenate(cells),
        "faces": np.concatenate([model.faces for model in models]).astype(np.uint16),
        "colors": np.concatenate([model.colors for model in models]),
        "parts": np.array(PARTS),
        "face_part": np.concatenate([model.parts for model in models]),
    }


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz whose bytes depend on the arrays only: no times, no pickles. Replaces `path` at once."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def part_shares(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share of the surface (M, P) that each of PARTS holds of each model; 0 where it has none."""
    shares = np.zeros((len(arrays["label"]), len(PARTS)))
    for i, share in enumerate(shares):
        vertex, face = (slice(*arrays[f"{kind}_start"][i : i + 2]) for kind in ("vertex", "face"))
        parts = arrays["face_part"][face]
        areas = triangle_areas(arrays["vertices"][vertex] * arrays["step"][i].astype(np.float64), arrays["faces"][face])
        named = parts != NO_PART
        share += np.bincount(parts[named], areas[named], len(PARTS)) / areas.sum()
    return shares


def write_card(
    path: Path, arrays: Mapping[str, np.ndarray], rows: list[dict[str, str]], seen: list[Visibility]
) -> None:
    """The data card: the text of furniture14_card.md with the figures of this build and a line for every model."""
    faces = np.diff(arrays["face_start"])
    count = Counter((row["label"], row["split"]) for row in rows)
    shares, in_split = part_shares(arrays), arrays["split"][:, None] == np.array(["train", "test"])
    per_part = [
        f"| {name} | {models[0]} | {models[1]} | {100 * np.median(share[share > 0]):.0f} % |"
        for name, share in zip(PARTS, shares.T)
        for models in [(in_split & (share > 0)[:, None]).sum(0)]
    ]
    per_class = [
        f"| {name} | {count[name, 'train']} | {count[name, 'test']} | {faces[arrays['label'] == i].mean():,.0f} |"
        for i, name in enumerate(arrays["classes"].tolist())
    ]
    per_model = [
        f"| {row['label']} | {row['split']} | `{row['model']}` | {row['name']} | {row['creator']} | {row['license']} | "
        f"{row['source']} |"
        for row in rows
    ]
    figures = {
        "visible": f"{100 * np.mean([v.visible for v in seen]):.1f}",
        "turned": f"{100 * np.mean([v.turned for v in seen]):.1f}",
        "triangles": f"{faces.sum():,}",
        "median": f"{int(np.median(faces)):,}",
        "largest": f"{faces.max():,}",
        "train": str(sum(row["split"] == "train" for row in rows)),
        "test": str(sum(row["split"] == "test" for row in rows)),
        "versions": f"Open3D {o3d.__version__}, trimesh {trimesh.__version__}, NumPy {np.__version__}",
        "with_parts": str((shares.sum(1) > 0).sum()),
        "per_part": "\n".join(per_part),
        "per_class": "\n".join(per_class),
        "per_model": "\n".join(per_model),
    }
    with replacing(path) as temporary:
        temporary.write_text(Template(CARD.read_text(encoding="utf-8")).substitute(figures), encoding="utf-8")


def draw_parts(columns: int = 10, size: int = 128) -> PIL.Image.Image:
    """A row for each class with parts: models spread evenly over it, in a color for each part."""
    colors = np.array([(0.85, 0.33, 0.30), (0.27, 0.47, 0.80), (0.35, 0.65, 0.35)])
    categories = list(dict.fromkeys(part.split("/")[0] for part in PARTS))
    first = np.array([PARTS.index(next(p for p in PARTS if p.startswith(f"{c}/"))) for c in categories])
    sheet = PIL.Image.new("RGB", (columns * size, len(categories) * (size + 20)), "white")
    for row, category in enumerate(categories):
        top = row * (size + 20)
        meshes = [m for m in load("all") if m.parts is not None and CLASSES[m.label] == category]
        for column, i in enumerate(np.linspace(0, len(meshes) - 1, columns).astype(int)):
            mesh = meshes[i]
            vertices = mesh.vertices / np.linalg.norm(np.ptp(mesh.vertices, axis=0))
            shown = np.repeat(colors[mesh.parts - first[row]], 3, axis=0)
            direction = view_direction(elevation=0 if category == "wallplate" else 20)
            picture = snapshots([surface(vertices, mesh.faces, shown)], direction, "y", size)[0]
            pasted = PIL.Image.fromarray((255 * picture).astype(np.uint8), "RGBA")
            sheet.paste(pasted, (column * size, top + 18), pasted)
        names = [part.split("/")[1] for part in PARTS if part.startswith(f"{category}/")]
        pen = PIL.ImageDraw.Draw(sheet)
        pen.text((4, top + 4), f"{category} ({len(meshes)})", fill="black")
        for place, (name, color) in enumerate(zip(names, colors)):
            pen.text((140 + 90 * place, top + 4), name, fill=tuple((255 * color).astype(int).tolist()))
    return sheet


# ------------------------------------------------------------------------------------------------------------- main


def fetch_libraries(package: Path | None, folder: Path) -> Path:
    """The folder with the .sh3f files, extracted from the package (downloaded by apt-get when none is given)."""
    if package is None:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
        package = next(folder.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "files")], check=True)
    return folder / "files" / "usr" / "share" / "sweethome3d" / "furniture"


def license_and_source(library: zipfile.ZipFile, name: str, default: str) -> tuple[str, str]:
    """A model's license (its own license file goes before the library's) and the page that the file gives for it."""
    for entry in sorted(library.namelist()):
        if same_folder(entry, name) and "license" in entry.lower():
            text = library.read(entry).decode("utf-8", "replace")
            number = re.match(r"\d+", entry.rpartition("/")[2]) or re.search(r"(?<=blends/view/)\d+", text)
            license = "CC-BY-3.0" if "Attribution 3.0" in text else default
            return license, f"https://www.blendswap.com/blends/view/{number[0]}" if number else ""
    return default, ""


def build(library_dir: Path) -> tuple[dict[str, np.ndarray], list[dict[str, str]], list[Visibility]]:
    """The asset's arrays, the table of models with license and source added, and what was seen of every model."""
    with MODELS_CSV.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = read_parts()
    missing = [name for name in LICENSES if not (library_dir / f"{name}.sh3f").is_file()]
    if missing:
        raise FileNotFoundError(f"{library_dir}: no {', '.join(f'{name}.sh3f' for name in missing)} there")
    libraries = {name: zipfile.ZipFile(library_dir / f"{name}.sh3f") for name in LICENSES}
    catalogs = {name: read_catalog(library) for name, library in libraries.items()}
    models, seen = [], []
    columns = (TextColumn("{task.description:28.28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(rows))
        for row in rows:
            progress.update(task, description=f"{row['label']}: {row['name']}")
            library = libraries[row["library"]]
            row["license"], row["source"] = license_and_source(library, row["model"], LICENSES[row["library"]])
            rotation = catalogs[row["library"]][row["model"]].get("modelRotation")
            original = read_model(library, row["model"], parts.get(row["model"]))
            model, visibility = outer_surface(to_meters(original, row, rotation), row)
            models.append(model)
            seen.append(visibility)
            progress.advance(task)
    return pack(models, rows), rows, seen


def compare(built: Path, shipped: Path) -> int:
    """Print whether two assets are equal, byte by byte or else array by array; 0 when they are."""
    if built.read_bytes() == shipped.read_bytes():
        print(f"{shipped}: equal, sha256 {hashlib.sha256(shipped.read_bytes()).hexdigest()}")
        return 0
    with np.load(built, allow_pickle=False) as new, np.load(shipped, allow_pickle=False) as old:
        names = sorted({*new.files, *old.files})
        differing = [n for n in names if n not in new or n not in old or not np.array_equal(new[n], old[n])]
    print(f"{shipped}: differs in {', '.join(differing) or 'its compression only'}")
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--package", type=Path, help=f"a downloaded {PACKAGE}_*.deb")
    source.add_argument("--library-dir", type=Path, help="a folder that holds the .sh3f files")
    parser.add_argument(
        "--check", action="store_true", help="compare a fresh build with the shipped asset, write nothing"
    )
    parser.add_argument("--draw-parts", type=Path, metavar="FILE", help="draw the parts of the asset, build nothing")
    args = parser.parse_args()
    if args.draw_parts is not None:
        draw_parts().quantize(128).save(args.draw_parts)
        return 0
    if args.package is not None and not args.package.is_file():
        parser.error(f"--package: no such file: {args.package}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays, rows, seen = build(args.library_dir or fetch_libraries(args.package, folder))
        print(f"visible share of the sampled surface: {100 * np.mean([v.visible for v in seen]):.1f} %")
        print(f"turned share of the visible surface: {100 * np.mean([v.turned for v in seen]):.1f} %")
        if args.check:
            write_npz(folder / ASSET.name, arrays)
            return compare(folder / ASSET.name, ASSET)
    write_npz(ASSET, arrays)
    write_card(ASSET.with_name("FURNITURE14.md"), arrays, rows, seen)
    print(f"{ASSET}: {ASSET.stat().st_size / 1e6:.2f} MB, {len(arrays['faces']):,} triangles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
