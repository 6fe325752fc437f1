"""Furnished rooms: the models of Furniture14 composed into rooms, and what a camera sees of them, with the truth.

A room is a function of (split, seed, number), the same in any process; the rooms of 'train' and 'test' hold the objects
of that split. Units are meters, y is up; a room spans [0, width] x [0, height] x [0, depth].

    room = Room("train", seed=0, number=7)
    view = room.see(room.camera(0), 320, 240)
    view.image, view.instances, view.labels, view.depth  # and view.boxes()
    other = room.see(room.camera(1), 320, 240)
    places, visible = room.correspondence(view, other)
    room.points(20_000)

`furnishing.py` says what stands where, `interior.py` what is around it; `room_files.py` writes rooms as a data set.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..data import check_seed, one_of, positive
from ..furniture import scattered
from ..rendering import Camera, Film, Hits, Mesh, Scene, camera_frame, srgb
from .furnishing import Box, Furnishing, Thing
from .interior import GROUND, SKY, Emitter, Interior
from .room_files import LABELS, STRUCTURE

SPLITS = ("train", "test")
FLOOR, WALL, CEILING = (LABELS.index(name) for name in STRUCTURE)
# --- the room itself -------------------------------------------------------------------------------------------------

SCANS = 16
TRIES = 40  # places at which a camera is tried
BLUR = [(down, right) for down in range(-3, 4) for right in range(-3, 4) if (down, right) != (0, 0)]  # of light


@dataclass(frozen=True)
class View:
    """What a camera sees of a room, by pixels; the rays of all but the image go through the middles of the pixels."""

    camera: Camera
    image: np.ndarray  # (H, W, 3) uint8, red, green, blue
    instances: np.ndarray  # (H, W) uint8: 1 + the number of the object in `room.things`; 0 for floor, wall and ceiling
    labels: np.ndarray  # (H, W) uint8: index into LABELS
    depth: np.ndarray  # (H, W) float32: meters from the plane of the eye
    places: np.ndarray  # (H, W, 3) float32: what is seen, in the room
    normals: np.ndarray  # (H, W, 3) float32: of the surfaces, to the eye

    @property
    def intrinsics(self) -> np.ndarray:
        """The matrix (3, 3) that takes (right, down, depth) to (column, row, 1) times depth, where whole numbers are
        the middles of pixels, as in OpenCV."""
        height, width = self.depth.shape
        focal = width / 2 / self.camera.tangent
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

    def boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The objects of which at least `LEAST` pixels are seen: `boxes` (N, 4) int, the extents of what is seen as
        left, top, right, bottom, the last two past the end; `labels` (N,); `numbers` (N,) as in `instances`."""
        return extents(self.instances, self.labels)


BEFORE = 1e-3  # meters before its surface, from where a point looks for light
SAME = 2e-3  # meters between two rays' ends that count as one point
LEAST = 20  # pixels of an object that are seen where it counts


def extents(instances: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `View.boxes`."""
    boxes, found, numbers = [], [], []
    counts = np.bincount(instances.ravel())
    for number in np.flatnonzero(counts[1:] >= LEAST) + 1:
        rows, columns = np.nonzero(instances == number)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        found.append(labels[rows[0], columns[0]])
        numbers.append(number)
    return np.array(boxes, int).reshape(-1, 4), np.array(found, int), np.array(numbers, int)


def _check_number(number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
        raise ValueError(f"number is {number!r}; it must be an integer of at least 0.")
    return int(number)


class Room:
    """One furnished room.

    Args:
        split: 'train' or 'test', whose models furnish it.
        seed: chooses another series of rooms (>= 0).
        number: of the room in its series (>= 0).
    """

    def __init__(self, split: str, seed: int, number: int):
        self.split, self.seed = one_of("split", split, SPLITS), check_seed(seed)
        self.number = _check_number(number)
        random = self._random(0)
        furnishing = Furnishing(split, random)
        self.size, self.theme = furnishing.size, furnishing.theme
        self.things: tuple[Thing, ...] = tuple(furnishing.things)
        self.interior = Interior(furnishing, random)
        self.labels = np.array([FLOOR, WALL, CEILING, *(thing.label for thing in self.things)], np.uint8)  # of meshes

    def _random(self, purpose: int, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.number, purpose, number])

    @cached_property
    def meshes(self) -> list[Mesh]:
        """Floor, walls, ceiling, and the objects in the order of `things`."""
        return [*self.interior.meshes(), *(thing.placed() for thing in self.things)]

    @cached_property
    def scene(self) -> Scene:
        """The meshes, for rays; cast by one thread, so that they meet the same in any process."""
        return Scene(self.meshes, threads=1)

    def changed(self, number: int, mesh: Mesh) -> "Room":
        """This room with a mesh in the place of that of an object, by its number in `things`, which stay as they are.
        It shares the other meshes."""
        other = copy(self)
        other.__dict__.pop("scene", None)
        other.meshes = [*self.meshes]
        other.meshes[len(STRUCTURE) + number] = mesh
        return other

    # seeing

    def camera(self, number: int = 0) -> Camera:
        """Camera 0 stands at eye height in a free place from which much is seen; others stand near it and see much of
        the same."""
        first = None if _check_number(number) == 0 else self.camera(0)
        random = self._random(1, number)
        tangent = np.tan(np.radians(random.uniform(60, 76)) / 2) if first is None else first.tangent
        best, most = None, -np.inf
        for attempt in range(TRIES):
            narrow = 2 * attempt >= TRIES  # where much stands in the way, a camera may stand between
            if first is None:
                place = np.append(random.uniform(0.3, self.size[[0, 2]] - 0.3), random.uniform(1.35, 1.72))
            else:
                turn, reach = random.uniform(0, 2 * np.pi), random.uniform(*((0.2, 0.6) if narrow else (0.3, 1.2)))
                shift = reach * np.cos(turn), reach * np.sin(turn), random.uniform(-0.15, 0.15)
                place = np.clip(first.eye[[0, 2, 1]] + shift, 0.25, [*(self.size[[0, 2]] - 0.25), 1.8])
            eye = place[[0, 2, 1]]
            target = self.size * (0.5, 0, 0.5) + random.uniform(-0.6, 0.6, 3) * (1, 0, 1)
            target[1] = random.uniform(0.7, 1.1)
            free = Box((eye[0], 0.0, eye[2]), (0.15, 1.9, 0.15) if narrow else (0.5, 1.9, 0.5), 0.0)
            if np.hypot(*(target - eye)[[0, 2]]) < 0.3 * np.hypot(*self.size[[0, 2]]) or any(
                free.overlaps(thing.box) for thing in self.things
            ):
                continue
            camera = Camera(camera_frame(eye - target, "y"), eye, tangent, 4 / 3)
            hits = self.scene.hit(eye, Film(camera, 40, 30, 1).directions)
            counts = np.bincount(hits.mesh, minlength=len(self.meshes))[3:]
            value = (counts >= 4).sum() + 40 * np.minimum(counts / 1200, 0.04).sum()
            value -= 25 * max(counts.max(initial=0) / 1200 - 0.2, 0) + 15 * (hits.distance < 1.2).mean()
            if first is not None:
                value += 80 * min(self._sees(first, hits)[1].mean(), 0.6)
            if value > most:
                best, most = camera, value
        if best is not None:
            return best
        if first is not None:  # no free place near by: the same, turned aside
            return replace(first, frame=camera_frame(first.frame[2] + 0.05 * (1 + number) * first.frame[0], "y"))
        eye = self.size * (0.5, 0, 0.5) + np.array([0, min(2.3, self.size[1] - 0.1), 0])  # above everything
        return Camera(camera_frame(np.array([0.2, 0.35, 1.0]), "y"), eye, tangent, 4 / 3)

    def see(self, camera: Camera, width: int = 320, height: int = 240, quality: int = 2) -> View:
        """What a camera sees.

        Args:
            camera: a camera of `camera()`, or any whose eye is inside the room; its angle of view is that of the width.
            width, height: size of the picture in pixels.
            quality: number of rays along the side of a pixel, for the image.
        """
        positive("width", width), positive("height", height), positive("quality", quality)
        if not ((camera.eye > 0) & (camera.eye < self.size)).all():
            raise ValueError(f"camera: its eye {camera.eye} must be inside the room, which reaches to {self.size}.")
        camera = replace(camera, aspect=width / height)
        hits = self.scene.hit(camera.eye, Film(camera, width, height, 1).directions)
        shape = height, width
        return View(
            camera,
            self._image(hits, Film(camera, width, height, quality), camera.eye),
            np.maximum(hits.mesh - 2, 0).astype(np.uint8).reshape(shape),
            self.labels[hits.mesh].reshape(shape),
            hits.distance.reshape(shape),
            hits.place.reshape(*shape, 3),
            hits.normal.reshape(*shape, 3),
        )

    def _image(self, middles: Hits, film: Film, eye: np.ndarray) -> np.ndarray:
        """The picture, of which `middles` are what the middles of the pixels meet."""
        hits = self.scene.hit(eye, film.directions)
        start = hits.place + BEFORE * hits.flat
        strength = np.empty(
            (len(start), 1 + len(self.interior.emitters)), np.float32
        )  # of ambient light, and of each emitter
        for way in film.spread(hits.rays, 1):
            strength[:, 0] = self.scene.unblocked(start, hits.normal + 0.999 * way, 0.9) * (
                0.8 + 0.2 * hits.normal[:, 1]
            )
            for number, emitter in enumerate(self.interior.emitters, 1):
                strength[:, number] = self._from(emitter, hits, start, way)
        strength = self._smoothed(strength, hits, middles, film)
        light = strength @ np.stack([self.interior.ambient, *(e.power for e in self.interior.emitters)]).astype(
            np.float32
        )
        color = self.interior.painted(hits.mesh, hits.place, hits.color)
        shining = np.flatnonzero(color[:, 0] > 1)
        light *= np.minimum(color, 1) ** 2.2
        rise = np.clip(6 * film.directions[hits.rays[shining], 1:2] + 0.5, 0, 1)
        light[shining] = self.interior.daylight * (GROUND + rise * (SKY - GROUND)) * 0.6
        picture = film.develop(hits.rays, light)[..., :3]
        exposure = 0.42 * self.interior.brightness / np.median(picture.mean(-1))
        return np.round(255 * srgb(1 - np.exp(-exposure * picture))).astype(np.uint8)

    @staticmethod
    def _smoothed(strength: np.ndarray, hits: Hits, middles: Hits, film: Film) -> np.ndarray:
        """Strengths of light (R, L) without the noise of their few rays: means over pixels near by that show the same
        surface."""
        quality, shape = film.quality, (film.height, film.width)
        row, column = hits.rays // (quality * film.width) // quality, hits.rays % (quality * film.width) // quality
        pixel = row * film.width + column
        same = middles.mesh[pixel] == hits.mesh
        same &= np.einsum("rc,rc->r", middles.normal[pixel], hits.normal) > 0.9
        count = np.bincount(pixel[same], minlength=film.height * film.width).astype(np.float32)
        sums = [np.bincount(pixel[same], values[same], len(count)).astype(np.float32) for values in strength.T]
        values = np.stack([*sums, count]).reshape(-1, *shape)
        normal, place, mesh = (a.reshape(*shape, *a.shape[1:]) for a in (middles.normal, middles.place, middles.mesh))
        total = values.copy()
        tolerance = 0.004 + 0.008 * middles.distance.reshape(shape)
        for down, right in BLUR:
            here = slice(max(down, 0), shape[0] + min(down, 0)), slice(max(right, 0), shape[1] + min(right, 0))
            there = slice(max(-down, 0), shape[0] + min(-down, 0)), slice(max(-right, 0), shape[1] + min(-right, 0))
            near = mesh[here] == mesh[there]
            near &= np.einsum("hwc,hwc->hw", normal[here], normal[there]) > 0.9
            near &= abs(np.einsum("hwc,hwc->hw", normal[here], place[there] - place[here])) < tolerance[here]
            total[(slice(None), *here)] += near * values[(slice(None), *there)]
        mean = (total[:-1] / np.maximum(total[-1], 1)).reshape(len(sums), -1).T
        return np.where(same[:, None], mean[pixel], strength)

    def _from(self, emitter: Emitter, hits: Hits, start: np.ndarray, ways: np.ndarray) -> np.ndarray:
        """How strongly (R,) a lamp or a window lights what is met, seen from one point of it for each ray."""
        toward = emitter.place.astype(np.float32) + ways @ emitter.extent.astype(np.float32) - start
        squared = np.einsum("rc,rc->r", toward, toward)
        cosine = np.einsum("rc,rc->r", hits.normal, toward) * (np.einsum("rc,rc->r", hits.flat, toward) > 0)
        cosine /= np.sqrt(squared)
        if emitter.facing is not None:
            cosine *= np.clip(toward @ -emitter.facing.astype(np.float32), 0, None) / np.sqrt(squared)
        return np.clip(cosine, 0, None) * self.scene.unblocked(start, toward, 1.0) / (squared + 0.5)

    # pairs of views, and points

    def _sees(self, camera: Camera, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
        """Where R points lie in the picture of a camera, from 0 to 1 (R, 2), NaN behind it; and whether it sees them
        (R,), from the side from which `hits` shows them."""
        places = hits.place.astype(np.float64)
        ahead = np.flatnonzero(camera.depth(places) > 1e-3)
        where = np.full((len(places), 2), np.nan)
        where[ahead] = camera.project(places[ahead])
        toward = places - camera.eye
        likely = ((where >= 0) & (where <= 1)).all(1) & (np.einsum("rc,rc->r", toward, hits.flat) < 0)
        likely = np.flatnonzero(likely)
        met = self.scene.hit(camera.eye, toward[likely])
        seen = np.zeros(len(places), bool)
        seen[likely[met.rays]] = np.linalg.norm(met.place - places[likely[met.rays]], axis=1) < SAME
        return where, seen

    def correspondence(self, view: View, other: View) -> tuple[np.ndarray, np.ndarray]:
        """Where the pixels of a view are in another of this room.

        Returns:
            Places (H, W, 2) float32 in the other view, column and row, where whole numbers are the middles of pixels
            (NaN behind that camera); whether the other camera sees the point (H, W), and not only its back.
        """
        shape, (height, width) = view.depth.shape, other.depth.shape
        hits = self.scene.hit(view.camera.eye, Film(view.camera, shape[1], shape[0], 1).directions)
        where, seen = self._sees(other.camera, hits)
        return (where * (width, height) - 0.5).astype(np.float32).reshape(*shape, 2), seen.reshape(shape)

    def points(self, count: int, draw: int = 0) -> dict[str, np.ndarray]:
        """Points on what a scanner sees from `SCANS` places in the room, drawn evenly by area.

        Args:
            count: number of points.
            draw: chooses another draw of the same room (>= 0).

        Returns:
            `pos` (N, 3) and `normal` (N, 3) float32, `color` (N, 3) float32 sRGB, `label` (N,) int64 into LABELS, and
            `instance` (N,) int64 as in `View.instances`.
        """
        positive("count", count)
        random = self._random(2, check_seed(draw))
        corners = [np.asarray(mesh.vertices)[np.asarray(mesh.triangles)] for mesh in self.meshes]
        triangles = np.concatenate(corners)
        meshes = np.repeat(np.arange(len(corners)), [len(part) for part in corners])
        colors = np.concatenate([np.asarray(m.vertex_colors)[np.asarray(m.triangles)[:, 0]] for m in self.meshes])
        eyes = random.uniform(0.2, self.size - 0.2, size=(20 * SCANS, 3))
        free = [not any(Box(tuple(eye), (0, 0, 0), 0).overlaps(thing.box) for thing in self.things) for eye in eyes]
        eyes = eyes[free][:SCANS]
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while sum(len(drawn) for drawn, *_ in parts) < count:
            drawn, pos, normal = scattered(triangles, 2 * count, random)
            start = pos + BEFORE * normal
            seen = np.any([self.scene.unblocked(start, eye - start, 1.0) for eye in eyes], axis=0)
            parts.append((drawn[seen], pos[seen], normal[seen]))
        drawn, pos, normal = (np.concatenate(part)[:count] for part in zip(*parts))
        mesh = meshes[drawn]
        return dict(
            pos=pos.astype(np.float32),
            normal=normal.astype(np.float32),
            color=np.minimum(self.interior.painted(mesh, pos, colors[drawn]), 1).astype(np.float32),
            label=self.labels[mesh].astype(np.int64),
            instance=np.maximum(mesh - 2, 0),
        )
