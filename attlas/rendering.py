"""Drawing with Open3D: surfaces, points, lines and arrows, in a window, or as pictures made by casting rays.

Rays (`open3d.t.geometry.RaycastingScene`), with a soft key light and ambient occlusion, need no graphics driver: a
headless machine draws what a workstation draws. Open3D's OffscreenRenderer ends the process where EGL or Vulkan does
not please it. Coordinates: the shape's own frame, `up` is "y" or "z".
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .data import UP_AXES, one_of

try:
    import open3d as o3d
except (ImportError, OSError) as error:
    raise ImportError(
        f"Open3D cannot be imported ({error}). On Debian it needs: apt-get install --no-install-recommends "
        "libgl1 libegl1 libgomp1 libusb-1.0-0"
    ) from error

Mesh = o3d.geometry.TriangleMesh  # with vertex normals and colors

CLAY = (0.80, 0.83, 0.87)

# --- scenes ----------------------------------------------------------------------------------------------------------


def _mesh(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, colors) -> Mesh:
    vectors = [np.array(a, dtype=float) for a in (vertices, normals, np.broadcast_to(colors, vertices.shape))]
    mesh = Mesh(o3d.utility.Vector3dVector(vectors[0]), o3d.utility.Vector3iVector(faces))
    mesh.vertex_normals, mesh.vertex_colors = map(o3d.utility.Vector3dVector, vectors[1:])
    return mesh


def surface(vertices: np.ndarray, faces: np.ndarray, color=CLAY, crease: float = 30) -> Mesh:
    """A mesh of vertices (V, 3) and faces (F, 3), shaded smoothly but for edges sharper than `crease` degrees."""
    corners = vertices[faces].astype(np.float64)  # (F, 3, 3)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # length: twice the area
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    flat = np.divide(cross, length, out=np.zeros_like(cross), where=length > 0)
    _, place = np.unique(vertices.round(6), axis=0, return_inverse=True)
    place = place.ravel()[faces]  # (F, 3): vertices at one place are one
    order = np.argsort(place.ravel(), kind="stable")
    starts = np.searchsorted(place.ravel()[order], np.arange(place.max() + 2))
    first, count = starts[place.ravel()], np.diff(starts)[place.ravel()]  # of the corners at each corner's place
    one = np.repeat(np.arange(3 * len(faces)), count)  # pairs of corners at one place
    other = order[np.arange(len(one)) + np.repeat(first - (np.cumsum(count) - count), count)] // 3
    near = np.einsum("pc,pc->p", flat[one // 3], flat[other]) > np.cos(np.radians(crease))
    summed = np.stack([np.bincount(one[near], cross[other[near], c], 3 * len(faces)) for c in range(3)], axis=1)
    size = np.linalg.norm(summed, axis=1, keepdims=True)
    normals = np.where(size > 0, summed / np.where(size > 0, size, 1), np.repeat(flat, 3, axis=0))
    index = np.arange(3 * len(faces)).reshape(-1, 3)
    return _mesh(corners.reshape(-1, 3), index, normals.reshape(-1, 3), color)


def point_spacing(points: np.ndarray) -> np.ndarray:
    """The distance (N,) from each of N >= 2 points (N, 3) to its third neighbor."""
    places = o3d.core.Tensor.from_numpy(np.ascontiguousarray(points))
    search = o3d.core.nns.NearestNeighborSearch(places)
    search.knn_index()
    return np.sqrt(search.knn_search(places, min(4, len(points)))[1].numpy()[:, -1])


def point_radius(points: np.ndarray) -> float:
    """A radius at which the spheres of a cloud (N, 3) nearly touch."""
    extent = float(np.linalg.norm(np.ptp(points, axis=0))) or 1.0
    if len(points) < 2:
        return 0.05 * extent
    return float(np.clip(0.4 * np.median(point_spacing(points)), 0.004 * extent, 0.02 * extent))


def spheres(points: np.ndarray, colors, radius: float | np.ndarray | None = None) -> Mesh:
    """A sphere for each point (N, 3); `colors` (3,) or (N, 3) in [0, 1], `radius` a number or (N,)."""
    radius = np.broadcast_to(point_radius(points) if radius is None else radius, len(points))
    ball = Mesh.create_sphere(1, resolution=10)
    normals, faces = np.asarray(ball.vertices), np.asarray(ball.triangles)
    vertices = points[:, None] + radius[:, None, None] * normals
    index = faces + len(normals) * np.arange(len(points))[:, None, None]
    colors = np.broadcast_to(np.atleast_2d(colors)[:, None], vertices.shape)
    return _mesh(
        vertices.reshape(-1, 3), index.reshape(-1, 3), np.tile(normals, (len(points), 1)), colors.reshape(-1, 3)
    )


def discs(points: np.ndarray, normals: np.ndarray, colors, radius: float | np.ndarray, corners: int = 8) -> Mesh:
    """A plate across the normal of each point, both (N, 3), that faces along it; `colors` (3,) or (N, 3) in [0, 1],
    `radius` a number or (N,)."""
    angle = 2 * np.pi * np.arange(corners) / corners
    side = np.cross(normals, np.eye(3)[np.abs(normals).argmin(1)])
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
    other = np.cross(normals, side)
    around = np.cos(angle)[:, None] * side[:, None] + np.sin(angle)[:, None] * other[:, None]  # (N, corners, 3)
    vertices = points[:, None] + np.broadcast_to(radius, len(points))[:, None, None] * around
    fan = np.array([(0, corner, corner + 1) for corner in range(1, corners - 1)])
    index = fan + corners * np.arange(len(points))[:, None, None]
    normals, colors = (np.broadcast_to(np.atleast_2d(values)[:, None], vertices.shape) for values in (normals, colors))
    return _mesh(vertices.reshape(-1, 3), index.reshape(-1, 3), normals.reshape(-1, 3), colors.reshape(-1, 3))


def tubes(starts: np.ndarray, ends: np.ndarray, colors, radius: float) -> Mesh:
    """A tube from each of `starts` (N, 3) to its end; `colors` (3,) or (N, 3)."""
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    axis = ends - starts
    axis = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin(1)])
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12)
    normals = circle[:, :1] * side[:, None] + circle[:, 1:] * np.cross(axis, side)[:, None]  # (N, 8, 3)
    vertices = np.stack([starts[:, None] + radius * normals, ends[:, None] + radius * normals], axis=1)
    here, there = np.arange(8), (np.arange(8) + 1) % 8
    faces = np.concatenate([np.stack([here, there, here + 8], 1), np.stack([there, there + 8, here + 8], 1)])
    index = faces + 16 * np.arange(len(starts))[:, None, None]
    colors = np.broadcast_to(np.atleast_2d(colors)[:, None, None], vertices.shape)
    normals = np.broadcast_to(normals[:, None], vertices.shape)
    return _mesh(vertices.reshape(-1, 3), index.reshape(-1, 3), normals.reshape(-1, 3), colors.reshape(-1, 3))


def arrow(start: np.ndarray, direction: np.ndarray, color, radius: float) -> Mesh:
    """An arrow from `start` that is `direction` long."""
    length = float(np.linalg.norm(direction))
    mesh = Mesh.create_arrow(radius, 2.5 * radius, length - 7 * radius, 7 * radius, resolution=24)
    mesh.rotate(_turn_z_to(direction / length), center=(0, 0, 0))
    mesh.translate(start)
    return surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles), color)


def disc(center: np.ndarray, normal: np.ndarray, color, radius: float) -> Mesh:
    """A flat round plate, as a piece of a plane."""
    mesh = Mesh.create_cylinder(radius, 0.005 * radius, resolution=64, split=1)
    mesh.rotate(_turn_z_to(normal), center=(0, 0, 0))
    mesh.translate(center)
    return surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles), color)


def _turn_z_to(direction: np.ndarray) -> np.ndarray:
    side = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(direction, side), direction], axis=1)


def joined(*meshes: Mesh) -> Mesh:
    whole = Mesh(meshes[0])
    for mesh in meshes[1:]:
        whole += mesh
    return whole


def normal_colors(normals: np.ndarray) -> np.ndarray:
    """Directions (N, 3) as colors: x, y, z as red, green, blue, half-way at zero, softened."""
    return 0.22 + 0.66 * (normals + 1) / 2


# --- rays ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """Right-handed frame (3, 3) of rows right, up, backward; eye; tangent of half the horizontal angle of view; width
    of the picture over its height."""

    frame: np.ndarray
    eye: np.ndarray
    tangent: float = np.tan(np.radians(11))
    aspect: float = 1.0

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) -> places (N, 2) in a picture: x to the right, y downward, both in [0, 1] inside of it."""
        x, y, z = self.frame @ (points - self.eye).T
        return 0.5 + 0.5 * np.stack([-x, self.aspect * y], axis=1) / (z * self.tangent)[:, None]

    def depth(self, points: np.ndarray) -> np.ndarray:
        """The distance (N,) of points (N, 3) from the plane of the eye, positive in front of it."""
        return (self.eye - points) @ self.frame[2]

    def directions(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The rays (len(y), len(x), 3) float32 through the places of a grid in the picture; one is 1 deep."""
        right, down = (2 * x - 1) * self.tangent, (2 * y - 1) * self.tangent / self.aspect
        plane = np.stack([*np.meshgrid(right, -down), np.full((len(y), len(x)), -1)], axis=-1)
        return plane.astype(np.float32) @ self.frame.astype(np.float32)


def look(meshes: Sequence[Mesh], frame: np.ndarray, margin: float = 1.04) -> Camera:
    """The nearest camera with axes `frame`, looking at the origin, that sees the whole of every mesh."""
    distance = 0.0
    for mesh in meshes:
        x, y, z = frame @ np.asarray(mesh.vertices).T
        distance = max(distance, float((z + margin * np.maximum(abs(x), abs(y)) / Camera.tangent).max()))
    return Camera(frame, distance * frame[2])


def camera_frame(backward: np.ndarray, up: np.ndarray | str) -> np.ndarray:
    """The axes (3, 3) of a camera that looks against `backward`: rows right, up, backward."""
    up = np.array(UP_AXES[up]) if isinstance(up, str) else up
    backward = np.asarray(backward, dtype=float) / np.linalg.norm(backward)
    right = np.cross(up, backward)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(np.eye(3)[np.abs(backward).argmin()], backward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(backward, right), backward])


def center_of(mesh: Mesh, frame: np.ndarray) -> np.ndarray:
    """The center (3,) of a mesh's bounding box along the axes of a camera."""
    seen = np.asarray(mesh.vertices) @ frame.T
    return (seen.min(0) + seen.max(0)) / 2 @ frame


def view_direction(azimuth: float = 30, elevation: float = 20, up: str = "y") -> np.ndarray:
    """From the shape to the eye; angles in degrees, azimuth 0 looks at the front (+z where y is up, -y where z is)."""
    one_of("up", up, ("y", "z"))
    a, e = np.radians([azimuth, elevation])
    right, top, front = np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)
    return np.array([right, top, front] if up == "y" else [right, -front, top])


@dataclass(frozen=True)
class Hits:
    """What R rays meet, in float32. Normals point to the side that the ray comes from: both sides of a surface are
    seen and lit."""

    rays: np.ndarray  # (R,) the numbers of the rays, in order; the others meet nothing
    distance: np.ndarray  # (R,) in lengths of the direction
    place: np.ndarray  # (R, 3)
    mesh: np.ndarray  # (R,) the number of the mesh in the scene
    normal: np.ndarray  # (R, 3) smooth
    flat: np.ndarray  # (R, 3) of the triangle
    color: np.ndarray  # (R, 3) sRGB in [0, 1]
    interpolate: Callable[[np.ndarray], np.ndarray]  # values (V, C) at the vertices of all meshes -> (R, C)


class Scene:
    """Meshes that rays can meet.

    Args:
        meshes: surfaces with normals and colors.
        threads: number of threads that cast rays; 0 takes all cores.
    """

    def __init__(self, meshes: Sequence[Mesh], threads: int = 0):
        self.threads = threads
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=threads)
        parts: list[tuple[np.ndarray, ...]] = []
        vertices = faces = 0
        self._first = []  # the number of each mesh's first face
        for mesh in meshes:
            places, normals, colors = (  # float32, in which Open3D casts rays: half the time
                np.asarray(a, np.float32) for a in (mesh.vertices, mesh.vertex_normals, mesh.vertex_colors)
            )
            index = np.asarray(mesh.triangles)
            self._scene.add_triangles(*map(o3d.core.Tensor.from_numpy, (places, index.astype(np.uint32))))
            parts.append((normals, colors, index + vertices))
            self._first.append(faces)
            vertices, faces = vertices + len(places), faces + len(index)
        self._normals, self._colors, self._faces = map(np.concatenate, zip(*parts))

    def hit(self, starts: np.ndarray, directions: np.ndarray) -> Hits:
        """Where rays from `starts` (3,) or (N, 3) along `directions` (N, 3) meet the first surface."""
        directions = directions.astype(np.float32, copy=False)
        starts = np.broadcast_to(np.asarray(starts, np.float32), directions.shape)
        rays = o3d.core.Tensor.from_numpy(np.concatenate([starts, directions], axis=1))
        found = {key: value.numpy() for key, value in self._scene.cast_rays(rays, nthreads=self.threads).items()}
        seen = np.flatnonzero(np.isfinite(found["t_hit"]))
        whole = len(seen) == len(directions)
        if not whole:
            found, starts, directions = {k: v[seen] for k, v in found.items()}, starts[seen], directions[seen]
        mesh = found["geometry_ids"].astype(np.int64)
        corner = self._faces[np.array(self._first)[mesh] + found["primitive_ids"]]
        u, v = found["primitive_uvs"].T[..., None]

        def interpolate(values: np.ndarray) -> np.ndarray:
            return (1 - u - v) * values[corner[:, 0]] + u * values[corner[:, 1]] + v * values[corner[:, 2]]

        normal, flat = interpolate(self._normals), found["primitive_normals"]
        for direction in (normal, flat):
            direction *= -np.sign(np.einsum("rc,rc->r", direction, directions))[:, None]
            direction /= np.maximum(np.sqrt(np.einsum("rc,rc->r", direction, direction)), 1e-9)[:, None]
        distance = found["t_hit"]
        place = starts + distance[:, None] * directions
        return Hits(seen, distance, place, mesh, normal, flat, interpolate(self._colors), interpolate)

    def unblocked(self, starts: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Whether nothing lies between `starts` and `starts + reach * directions`, both (N, 3): (N,) booleans."""
        rays = np.concatenate([starts, directions], axis=1, dtype=np.float32)
        blocked = self._scene.test_occlusions(o3d.core.Tensor.from_numpy(rays), tfar=reach, nthreads=self.threads)
        return ~blocked.numpy()


GOLDEN = (5**0.5 - 1) / 2


class Film:
    """The rays through a picture, `quality` squared to a pixel, row by row, and the picture that their light makes.

    Args:
        camera: where the rays come from; all start in its eye.
        width, height: pixels of the picture.
        quality: number of rays along the side of a pixel.
        part: (left, top, right, bottom) of the pixels that are asked about; the whole picture unless given.
    """

    def __init__(self, camera: Camera, width: int, height: int, quality: int, part=None):
        self.width, self.height, self.quality = width, height, quality
        self.part = (0, 0, width, height) if part is None else part
        left, top, right, bottom = self.part
        self.columns = np.arange(quality * left, quality * right)
        self.rows = np.arange(quality * top, quality * bottom)
        x, y = (self.columns + 0.5) / (width * quality), (self.rows + 0.5) / (height * quality)
        self.directions = camera.directions(x, y).reshape(-1, 3)  # (R, 3)

    def spread(self, rays: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """`count` directions (len(rays), 3) for each of some rays, such that those of a pixel spread evenly.

        The rays of a pixel take their directions from one spiral over the sphere, each its own piece of it. Every pixel
        turns the spiral at random, or else the picture would show its pattern.
        """
        quality = self.quality
        row, column = self.rows[rays // len(self.columns)], self.columns[rays % len(self.columns)]
        inside = (row % quality * quality + column % quality).astype(np.float32)
        table = np.random.default_rng(0).random((2, self.height, self.width), np.float32)
        turn, lift = table[:, row // quality, column // quality]
        for number in range(count):
            place = inside * count + number
            height = 1 - 2 * (place + lift) / (quality**2 * count)
            angle, radius = 2 * np.pi * (turn + GOLDEN * place), np.sqrt(1 - height**2)
            yield np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)

    def develop(self, rays: np.ndarray, light: np.ndarray) -> np.ndarray:
        """Light (len(rays), 3) of some rays -> picture (height, width, 4) of means: light, not sRGB, and opacity."""
        quality, (left, top, right, bottom) = self.quality, self.part
        values = np.zeros((len(self.directions), 4), np.float32)
        values[rays, :3], values[rays, 3] = light, 1
        values = values.reshape(bottom - top, quality, right - left, quality, 4).mean((1, 3))
        values[..., :3] /= np.maximum(values[..., 3:], 1e-9)
        picture = np.zeros((self.height, self.width, 4))
        picture[top:bottom, left:right] = values
        return picture


def srgb(light: np.ndarray) -> np.ndarray:
    """Light in [0, 1], clipped to that, as sRGB values; `** 2.2` is the way back."""
    return np.clip(light, 0, 1) ** (1 / 2.2)


SKY, LAMP = 2, 1  # rays to light for each ray that meets the mesh


def render(mesh: Mesh, camera: Camera, size: int = 512, quality: int = 3) -> np.ndarray:
    """A picture (size, size, 4) of floats in [0, 1], red, green, blue and opacity, without a background.

    A pixel is the mean of `quality` squared rays. Each that meets the mesh, all of which lies in front of the camera,
    sends rays for ambient occlusion and for the soft shadow of the key light.
    """
    return render_colors(mesh, [np.asarray(mesh.vertex_colors)], camera, size, quality)[0]


def render_colors(
    mesh: Mesh, colors: Sequence[np.ndarray], camera: Camera, size: int = 512, quality: int = 3
) -> list[np.ndarray]:
    """The pictures that `render` makes of a mesh with each of some colors (V, 3); rays are cast once for all."""
    scene = Scene([mesh])
    places = size * camera.project(np.asarray(mesh.vertices))
    low = np.clip(np.floor(places.min(0)), 0, size).astype(int)  # the rays of a rectangle around the mesh suffice
    high = np.clip(np.ceil(places.max(0)), 0, size).astype(int)
    film = Film(camera, size, size, quality, (*low, *high))
    hits = scene.hit(camera.eye, film.directions)
    if not len(hits.rays):
        return [np.zeros((size, size, 4)) for _ in colors]
    extent = float(np.linalg.norm(mesh.get_max_bound() - mesh.get_min_bound()))
    start = hits.place + 1e-3 * extent * hits.flat
    frame = camera.frame.astype(np.float32)

    def open_to(ways: Iterator[np.ndarray], reach: float) -> np.ndarray:
        return np.mean([scene.unblocked(start, way, reach) for way in ways], axis=0)

    open_sky = open_to((hits.normal + 0.999 * way for way in film.spread(hits.rays, SKY)), 0.4 * extent)
    key = np.array([-0.45, 0.75, 0.6], np.float32) @ frame
    key /= np.linalg.norm(key)
    lit = open_to((key + 0.2 * way for way in film.spread(hits.rays, LAMP)), 10 * extent)
    facing = np.clip(hits.normal @ key, 0, None) * ((hits.flat @ key) > 0)
    fill = 0.5 + 0.5 * hits.normal @ frame[2]
    shade = 0.72 * lit * facing + open_sky * (0.24 + 0.30 * fill)
    pictures = []
    for one in colors:
        light = hits.interpolate(one.astype(np.float32)) ** 2.2 * shade[:, None]  # sRGB -> light
        pictures.append(film.develop(hits.rays, light))
        pictures[-1][..., :3] = srgb(pictures[-1][..., :3])
    return pictures


def snapshots(meshes: Sequence[Mesh], backward: np.ndarray, up: str, size: int) -> list[np.ndarray]:
    """Pictures of meshes, each centered, all at one scale."""
    frame = camera_frame(backward, up)
    moved = [Mesh(mesh) for mesh in meshes]
    for mesh in moved:
        mesh.translate(-center_of(mesh, frame))
    camera = look(moved, frame)
    return [render(mesh, camera, size) for mesh in moved]


def window(meshes: Sequence[Mesh], title: str, backs: bool = True) -> None:
    """Shows meshes side by side, until the window is closed; without the `backs` of their faces, one looks through
    these. RuntimeError where there is no display."""
    displays = "DISPLAY", "WAYLAND_DISPLAY"
    # Open3D would fall back to an invisible window, and wait for somebody to close it
    visible = not sys.platform.startswith("linux") or any(map(os.environ.get, displays))
    visualizer = o3d.visualization.Visualizer() if visible else None
    if visualizer is None or not visualizer.create_window(title, 1280, 800):
        raise RuntimeError(
            f"Open3D cannot open a window. It needs a display (in {' or '.join(displays)}) and on Debian the packages "
            "libgl1 libegl1 libgomp1 libusb-1.0-0 libvulkan1 mesa-vulkan-drivers. Without, draw into a file: --out."
        )
    width = max(float(np.ptp(np.asarray(mesh.vertices)[:, 0])) for mesh in meshes)
    for place, mesh in enumerate(meshes):
        visualizer.add_geometry(Mesh(mesh).translate((1.25 * width * place, 0, 0)))
    visualizer.get_render_option().mesh_show_back_face = backs
    visualizer.run()
    visualizer.destroy_window()
