"""Furniture seen by a camera: the built-in meshes as pictures to classify, rendered once by casting rays, then cached.

A view is a function of (seed, split, mesh, view) alone: from any side, between 10 degrees below and 60 above the
horizon, nearer or farther, about the middle of the picture, lit by one lamp from anywhere above and by the sky, in the
mesh's own colours on a plain light ground. Open3D's RaycastingScene needs no graphics driver.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from ... import furniture
from ...data import check_seed, one_of, positive
from ...files import cache_folder, replacing
from ...registry import DATASETS
from .datasets import ImageArrays

SPLITS = ("train", "test")
RENDERER = 1  # to be raised whenever `render_view` draws another picture: cached ones of another number are not used


@DATASETS.register_module()
class FurnitureViews(ImageArrays):
    """Furniture14 seen by a camera: `views` pictures of each of 286 meshes to train on and 122 to test, 14 classes.
    Those of a mesh follow each other. The first use renders them, in about a minute; later ones map the cached file.

    Args:
        views: pictures of each mesh.
        size: of the pictures, in pixels.
        cache: the folder of the rendered files; `cache_folder()` unless given.
    """

    CLASSES = furniture.CLASSES

    def __init__(self, split: str = "train", transforms=(), seed: int = 0, views: int = 16, size: int = 96, cache=None):
        one_of("FurnitureViews.split", split, SPLITS)
        self.views = positive("FurnitureViews.views", views)
        self.meshes = furniture.load(split)
        size = positive("FurnitureViews.size", size)
        folder = Path(cache).expanduser() if cache else cache_folder()
        images = rendered(self.meshes, split, check_seed(seed), self.views, size, folder)
        labels = np.repeat([mesh.label for mesh in self.meshes], self.views)
        super().__init__(split, self.CLASSES, images, labels, transforms, seed)

    def name(self, item: int) -> str:
        mesh, view = divmod(item, self.views)
        return f"{self.meshes[mesh].name}, view {view}"

    def group(self, item: int) -> str:
        return self.meshes[item // self.views].name


def rendered(meshes, split: str, seed: int, views: int, size: int, folder: Path) -> np.ndarray:
    """Pictures (M * views, size, size, 3) uint8, mapped from the cached file, which is made where it is missing or
    broken. Its name holds a hash of everything that the pictures depend on. Processes that start together may each
    render it: what they write is the same, and is written whole."""
    key = hashlib.sha256(f"{RENDERER}|{split}|{seed}|{views}|{size}".encode())
    for mesh in meshes:
        for array in (mesh.vertices, mesh.faces, mesh.colors):
            key.update(np.ascontiguousarray(array).data)
    path = folder / f"furniture_views-{split}-{views}x{size}-{key.hexdigest()[:16]}.npy"
    shape = (len(meshes) * views, size, size, 3)
    images = _mapped(path, shape)
    if images is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # before the work, not after it
            raise OSError(
                f"The cache {folder} cannot be made ({error}); name another folder in $ATTLAS_CACHE."
            ) from error
        images = np.empty(shape, np.uint8)
        shown = track(
            enumerate(meshes),
            f"rendering {split} views",
            total=len(meshes),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        for number, mesh in shown:
            scene = Scene(mesh)
            for view in range(views):
                random = np.random.default_rng([seed, SPLITS.index(split), number, view])
                images[number * views + view] = scene.picture(random, size)
        with replacing(path) as temporary:
            np.save(temporary, images)
    return images


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a cached file, mapped, so that all processes share it; None where there is none like that."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(images, np.ndarray) and images.shape == shape and images.dtype == np.uint8
    return images if fits else None


class Scene:
    """A mesh of `furniture`, and pictures of it."""

    def __init__(self, mesh: furniture.Mesh):
        from ...rendering import o3d  # here, because importing Open3D takes a second, and cached pictures need none

        self.vertices = mesh.vertices.astype(np.float64)
        self.vertices -= (self.vertices.min(0) + self.vertices.max(0)) / 2
        corners = self.vertices[mesh.faces]  # (F, 3, 3)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        self.places = corners[:, 0]  # of the faces' planes
        self.colors = (mesh.colors / 255.0) ** 2.2  # sRGB -> light
        self.tensor = o3d.core.Tensor.from_numpy
        self.rays = o3d.t.geometry.RaycastingScene()
        self.rays.add_triangles(
            self.tensor(self.vertices.astype(np.float32)), self.tensor(mesh.faces.astype(np.uint32))
        )

    def picture(self, random: np.random.Generator, size: int) -> np.ndarray:
        """A random view, uint8 (size, size, 3)."""
        from ...rendering import camera_frame, view_direction

        azimuth, elevation = random.uniform(0, 360), random.uniform(-10, 60)
        tangent = np.tan(np.radians(random.uniform(8, 25)))  # of half the angle of view: from far to near
        filled = random.uniform(0.65, 0.95)  # the share of the picture that the shape spans
        frame = camera_frame(view_direction(azimuth, elevation), "y")
        x, y, z = frame @ self.vertices.T
        distance = (z + np.maximum(abs(x), abs(y)) / (filled * tangent)).max()
        seen = np.stack([x, y]) / ((distance - z) * tangent)  # (2, V) in [-filled, filled], up is positive
        low, high = seen.min(1), seen.max(1)
        room = 1 - (high - low) / 2
        shift = random.uniform(-room, room) / 2 - (low + high) / 2  # half-way from the middle to the border, at most

        # Rays through a grid of two by two to a pixel, but only in the rectangle around the shape
        side = 2 * size
        left, right = _grid((low[0] + shift[0], high[0] + shift[0]), side)
        bottom, top = _grid((low[1] + shift[1], high[1] + shift[1]), side)
        u = (np.arange(left, right) + 0.5) / size - 1 - shift[0]
        v = (np.arange(bottom, top) + 0.5) / size - 1 - shift[1]
        plane = np.stack([*np.meshgrid(u * tangent, v * tangent), np.full((len(v), len(u)), -1.0)], axis=-1)
        toward = plane.reshape(-1, 3) @ frame
        eye = distance * frame[2]
        rays = np.concatenate([np.broadcast_to(eye, toward.shape), toward], axis=1).astype(np.float32)
        face = self.rays.cast_rays(self.tensor(rays))["primitive_ids"].numpy().reshape(len(v), len(u))

        lamp = view_direction(azimuth + random.uniform(-100, 100), random.uniform(20, 80))
        ground = np.clip(random.uniform(0.72, 1) + random.uniform(-0.06, 0.06, size=3), 0, 1) ** 2.2
        normals = self.normals * np.sign((self.normals * (eye - self.places)).sum(1, keepdims=True))  # to the eye
        shade = 0.65 * np.clip(normals @ lamp, 0, None) + 0.2 * normals @ frame[2] + 0.22 + 0.12 * normals[:, 1]
        lit = np.concatenate([self.colors * shade[:, None], ground[None]])  # the last for rays that meet no face
        light = np.full((side, side, 3), ground)
        light[bottom:top, left:right] = lit[np.minimum(face, len(lit) - 1)]
        light = light[::-1].reshape(size, 2, size, 2, 3).mean((1, 3))  # rows from the top
        return np.round(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


def _grid(interval: tuple[float, float], side: int) -> tuple[int, int]:
    """First and one past the last of `side` cells of [-1, 1] that meet an interval."""
    low, high = ((value + 1) / 2 * side for value in interval)
    return max(int(np.floor(low)), 0), min(int(np.ceil(high)), side)
