"""What stands where in a room: the models of Furniture14 by where they may stand, and the composing of rooms of them.

A model keeps its size, but for trees, which stand in pots as house plants, street lamps, which light a room, and cars,
which are toys here. Units are meters, y is up; a room spans [0, width] x [0, height] x [0, depth].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

from .. import furniture
from ..rendering import Mesh, Scene, joined, surface

# --- models ----------------------------------------------------------------------------------------------------------

# By kind, the most that a model may measure in height and in either direction of the plan: what is larger, shrinks.
LARGEST = {
    "large plant": (1.9, 1.1),
    "tree": (1.6, 1.1),
    "floor lamp": (1.75, 0.7),
    "car": (0.2, 0.42),
    "door": (2.3, 2.0),
    "hanging lamp": (0.8, 0.9),
}
POT = (0.28, 0.17)  # meters: height and radius, for trees
CELL = 0.02  # meters of a cell of the maps of heights


@dataclass(frozen=True)
class Model:
    """A piece of furniture as rooms use it: `kind` says where it may stand, `scale` is its size here over its own."""

    mesh: furniture.Mesh
    kind: str
    scale: float

    @cached_property
    def surface(self) -> Mesh:
        colors = np.repeat(self.mesh.colors / 255, 3, axis=0)
        if self.kind == "window":
            colors[np.repeat(self._pane, 3)] = PANE
        whole = surface(self.mesh.vertices * self.scale, self.mesh.faces, colors)
        return self._potted(whole) if self.kind == "tree" else whole

    @cached_property
    def size(self) -> np.ndarray:
        """Width, height and depth in meters."""
        return np.ptp(np.asarray(self.surface.vertices), axis=0)

    def _potted(self, tree: Mesh) -> Mesh:
        """A tree in a pot of earth, its middle over the origin."""
        places = np.asarray(tree.vertices)
        trunk = places[places[:, 1] < 0.03 * places[:, 1].max()].mean(0)
        angle = np.linspace(0, 2 * np.pi, 21)[:-1]
        ring = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], axis=1)
        height, radius = POT
        middle = trunk * (1, 0, 1)
        vertices = np.concatenate([0.7 * radius * ring, radius * ring + [0, height, 0], [[0, 0.9 * height, 0]]])
        vertices += middle
        here, there = np.arange(20), (np.arange(20) + 1) % 20
        sides = np.concatenate([np.stack([here, here + 20, there], 1), np.stack([there, here + 20, there + 20], 1)])
        earth = np.stack([here + 20, np.full(20, 40), there + 20], 1)
        tree.translate((0, 0.85 * height, 0))
        tree = joined(tree, surface(vertices, sides, (0.62, 0.38, 0.27)), surface(vertices, earth, (0.22, 0.16, 0.11)))
        low, high = tree.get_min_bound(), tree.get_max_bound()
        tree.translate(-(low + high) / 2 * (1, 0, 1))
        return tree

    @cached_property
    def heights(self) -> np.ndarray:
        """How high the model is, seen from above: (depth, width) in cells of `CELL`; 0 where there is nothing."""
        width, height, depth = self.size
        x = np.arange(0.5 * CELL, width, CELL) - width / 2
        z = np.arange(0.5 * CELL, depth, CELL) - depth / 2
        starts = np.stack([*np.meshgrid(x, z), np.full((len(z), len(x)), height + 1)], axis=-1)[..., [0, 2, 1]]
        starts = starts.reshape(-1, 3)
        hits = Scene([self.surface], threads=1).hit(starts, np.broadcast_to([0.0, -1, 0], starts.shape))
        found = np.zeros(len(starts), np.float32)
        found[hits.rays] = hits.place[:, 1]
        return found.reshape(len(z), len(x))

    @cached_property
    def front(self) -> float:
        """How far before its middle the frame of a door or window lies; handles reach farther."""
        areas, facing = self._facing
        depths = self.mesh.vertices[self.mesh.faces][:, :, 2].mean(1) * self.scale
        order = np.argsort(-depths[facing])
        reached = np.cumsum(areas[facing][order])
        return float(depths[facing][order][np.searchsorted(reached, 0.1 * reached[-1])])

    @cached_property
    def _facing(self) -> tuple[np.ndarray, np.ndarray]:
        """Areas of the faces, and which of them face the front."""
        corners = self.mesh.vertices[self.mesh.faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas = np.linalg.norm(cross, axis=1)
        return areas, cross[:, 2] > 0.9 * areas

    @cached_property
    def _pane(self) -> np.ndarray:
        """The faces of a window's panes: those of the color that covers most of its front."""
        areas, facing = self._facing
        _, color = np.unique(self.mesh.colors, axis=0, return_inverse=True)
        color = color.ravel()
        return color == np.bincount(color[facing], areas[facing]).argmax()


PANE = (2.0, 2.0, 2.0)  # of a window pane: what is brighter than white shows the outside


def kind_of(mesh: furniture.Mesh) -> str | None:
    """Where a model may stand in a room, by its class, size and name; None for a model that fits in no room."""
    width, height, depth = np.ptp(mesh.vertices, axis=0)
    label, name, file = furniture.CLASSES[mesh.label], mesh.name.lower(), mesh.model.rpartition("/")[2].lower()
    if label == "door":
        return "door" if width < 2 else None  # others are of garages
    if label == "chair":
        return "chair" if max(width, depth) < 0.68 and height > 0.65 else "armchair"
    if label == "table":
        return "coffee table" if height < 0.6 else "desk" if "desk" in name + file else "table"
    if label == "cabinet":
        if "upper" in file or "glassdoor" in file:
            return "upper cabinet"
        if "vanity" in file:
            return "vanity"
        if file.startswith(("highcabinet", "drawersc", "lowerc", "sinkc", "kitchen", "chest-freezer")):
            return "kitchen cabinet"
        return "small cabinet" if height < 0.7 else "low cabinet" if height < 1.25 else "tall cabinet"
    if label == "lamp":
        if name.startswith(("hanging", "pendant", "chandelier", "fluorescent", "ceiling")):
            return "hanging lamp"
        if file.startswith(("outdoorlamp", "lamp2")):  # on chains
            return "hanging lamp"
        if name.startswith(("wall", "porch")):
            return "wall lamp"
        return "floor lamp" if height > 1 else "lamp"
    if label == "person":
        if height < 1.2:
            return "person on the floor"
        return "seated person" if "sitting" in name else "standing person"
    if label == "plant":
        if "hedge" in name:
            return None
        largest = max(width, height, depth)
        return "plant" if largest < 0.65 else "tree" if largest > 2.1 or name == "bush" else "large plant"
    if label == "vessel":
        return "vessel" if height < 0.45 else "large vessel"
    if label == "washbasin":
        if file.startswith(("urinal", "small-urinal", "bathroom", "small_lavatory")):
            return "hung washbasin"
        return "kitchen sink" if name == "sink" else "tub" if file.startswith("basin") else "washbasin"
    return label  # bed, car, sofa, wallplate, window


@cache
def models(split: str) -> dict[str, list[Model]]:
    """The models of a split by kind."""
    found: dict[str, list[Model]] = {}
    for mesh in furniture.load(split):
        kind = kind_of(mesh)
        if kind is not None:
            width, height, depth = np.ptp(mesh.vertices, axis=0)
            most = LARGEST.get(kind, (np.inf, np.inf))
            scale = min(1.0, most[0] / height, most[1] / max(width, depth))
            found.setdefault(kind, []).append(Model(mesh, kind, float(scale)))
    return found


# --- boxes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """An upright box: middle of its bottom (x, y, z), size (width, height, depth), and the turn about y in radians
    that takes +z, its front, to (sin yaw, 0, cos yaw)."""

    place: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float

    @property
    def middle(self) -> np.ndarray:
        """Its middle in the plan, (x, z)."""
        return np.array([self.place[0], self.place[2]])

    @property
    def axes(self) -> np.ndarray:
        """Its width and depth as directions in the plan (2, 2), (x, z)."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin], [sin, cos]])

    def plan(self, gap: float = 0.0) -> np.ndarray:
        """The corners (4, 2) in the plan, (x, z), moved outward by `gap`."""
        half = np.array([self.size[0] / 2 + gap, self.size[2] / 2 + gap])
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return self.middle + signs * half @ self.axes

    def overlaps_in_plan(self, other: "Box", gap: float = 0.0) -> bool:
        mine, theirs = self.plan(gap), other.plan()
        for axis in (*self.axes, *other.axes):  # one of them separates two boxes that are apart
            a, b = mine @ axis, theirs @ axis
            if a.max() <= b.min() or b.max() <= a.min():
                return False
        return True

    def overlaps(self, other: "Box", gap: float = 0.0) -> bool:
        """Whether two boxes come nearer than `gap` to each other."""
        return self.place[1] < other.top and other.place[1] < self.top and self.overlaps_in_plan(other, gap)

    @property
    def top(self) -> float:
        return self.place[1] + self.size[1]

    @property
    def forward(self) -> np.ndarray:
        """The direction of its front (x, z)."""
        return self.axes[1]


def boxed(model: Model, x: float, y: float, z: float, yaw: float) -> Box:
    """The box of a model that stands there."""
    width, height, depth = map(float, model.size)
    return Box((float(x), float(y), float(z)), (width, height, depth), float(yaw))


@dataclass(frozen=True)
class Thing:
    """An object of a room. `on` is the number of the object that it stands or sits on; None: floor, wall or ceiling."""

    model: Model
    box: Box
    on: int | None = None

    @property
    def label(self) -> int:
        return self.model.mesh.label

    def placed(self) -> Mesh:
        mesh = Mesh(self.model.surface)
        cos, sin = np.cos(self.box.yaw), np.sin(self.box.yaw)
        mesh.rotate(np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]), center=(0, 0, 0))
        mesh.translate(self.box.place)
        return mesh


@dataclass(frozen=True)
class WallFrame:
    """One of the four walls: where it starts in the plan, its direction along, to the right as seen from inside, its
    length, the direction inward, and the yaw of what stands with its back to it."""

    start: np.ndarray
    along: np.ndarray
    inward: np.ndarray
    length: float
    yaw: float

    @classmethod
    def of(cls, size: np.ndarray, number: int) -> "WallFrame":
        """Wall 0 to 3 of a room of a size (3,)."""
        width, _, depth = size
        start = np.array([(0, 0), (width, 0), (width, depth), (0, depth)][number], float)
        along = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][number], float)
        yaw = (0.0, -np.pi / 2, np.pi, np.pi / 2)[number]
        return cls(start, along, np.array([-along[1], along[0]]), float((width, depth)[number % 2]), yaw)

    def plan(self, place: float, inward: float) -> np.ndarray:
        """The point (x, z) that lies `place` meters along and `inward` meters before the wall."""
        return self.start + place * self.along + inward * self.inward

    def room(self, places: Sequence[tuple[float, float, float]]) -> np.ndarray:
        """Points (N, 3) of the room, given along, up and inward."""
        along, up, inward = np.array(places, float).T[..., None]
        x, z = (self.start + along * self.along + inward * self.inward).T
        return np.stack([x, up[:, 0], z], axis=1)


# --- composing -------------------------------------------------------------------------------------------------------

THEMES = ("living room", "dining room", "bedroom", "office", "kitchen", "bathroom")
WALL_GAP = 0.02  # meters between furniture and a wall: the skirting board lies there
TRIES = 20


class Furnishing:
    """Puts objects into an empty room, one after the other, each where it overlaps with none. An object that finds no
    place is left out."""

    def __init__(self, split: str, random: np.random.Generator):
        self.models, self.random = models(split), random
        self.theme = THEMES[random.choice(len(THEMES), p=(0.26, 0.15, 0.22, 0.14, 0.10, 0.13))]
        small = self.theme in ("kitchen", "bathroom")
        low, high = (2.7, 3.9) if small else (3.3, 5.2)
        self.size = np.array([random.uniform(low, high), random.uniform(2.45, 2.85), random.uniform(low, high)])
        self.things: list[Thing] = []
        self.reserved: list[Box] = []  # kept free: before doors and windows
        # of walls, where doors and windows are: (wall, left, right, bottom, top, depth behind the wall)
        self.holes: list[tuple[int, float, float, float, float, float]] = []
        self.pictures: list[tuple[int, float, float, float, float]] = []  # (wall, left, right, bottom, top)
        self.rug: Box | None = None
        self.openings()
        getattr(self, self.theme.replace(" ", "_"))()
        self.extras()

    # what every placing comes down to

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def whole(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        return int(self.random.integers(low, high + 1))

    def some(self, *kinds: str) -> Model | None:
        """A model of one of some kinds, or None where the split has none."""
        found = [model for kind in kinds for model in self.models.get(kind, [])]
        return found[self.random.integers(len(found))] if found else None

    def add(self, model: Model, x: float, z: float, yaw: float, y: float = 0.0, on: int | None = None) -> int | None:
        """Put a model there, where it fits; the number of the object, or None."""
        box = boxed(model, x, y, z, yaw)
        corners = box.plan()
        if (corners < -1e-6).any() or (corners > self.size[[0, 2]] + 1e-6).any() or box.top > self.size[1]:
            return None
        others = [thing.box for number, thing in enumerate(self.things) if number != on]
        if any(box.overlaps(other, 0.02) for other in others + self.reserved):
            return None
        self.things.append(Thing(model, box, on))
        return len(self.things) - 1

    def against(self, model: Model, number: int, place: float, y: float = 0.0, gap: float = WALL_GAP) -> int | None:
        """Put a model with its back to a wall, its middle `place` meters along."""
        wall = WallFrame.of(self.size, number)
        x, z = wall.plan(place, gap + model.size[2] / 2)
        return self.add(model, x, z, wall.yaw, y)

    def somewhere_against(self, model: Model | None, y: float = 0.0, gap: float = WALL_GAP) -> int | None:
        """Put a model with its back to any wall; in one try of three into a corner."""
        if model is None:
            return None
        for _ in range(TRIES):
            number = self.whole(0, 3)
            half, length = model.size[0] / 2, WallFrame.of(self.size, number).length
            if 2 * half + 0.1 > length:
                continue
            place = self.random.uniform(half + 0.05, length - half - 0.05)
            if self.chance(0.33):
                place = half + 0.05 if self.chance(0.5) else length - half - 0.05
            found = self.against(model, number, place, y, gap)
            if found is not None:
                return found
        return None

    def one_against_a_wall(self, kind: str) -> int | None:
        """One of a few models of a kind, whichever finds a place first."""
        for _ in range(4):
            found = self.somewhere_against(self.some(kind))
            if found is not None:
                return found
        return None

    def somewhere(self, model: Model | None, margin: float = 0.1, yaw: float | None = None) -> int | None:
        """Put a model on the floor anywhere."""
        if model is None:
            return None
        for _ in range(TRIES):
            turn = self.random.uniform(0, 2 * np.pi) if yaw is None else yaw
            x, z = self.random.uniform(margin, self.size[[0, 2]] - margin)
            found = self.add(model, x, z, turn)
            if found is not None:
                return found
        return None

    def before(self, number: int, model: Model | None, gap: float, shift: float = 0.0, turned: float = 0.0):
        """Put a model before the front of an object, `gap` apart and `shift` to its side; `turned` 0 looks where the
        object looks."""
        if model is None:
            return None
        box = self.things[number].box
        yaw = box.yaw + turned
        reach = abs(np.cos(turned)) * model.size[2] / 2 + abs(np.sin(turned)) * model.size[0] / 2
        middle = box.middle + (box.size[2] / 2 + gap + reach) * box.forward
        x, z = middle + shift * box.axes[0]
        return self.add(model, x, z, yaw)

    def on_top(self, model: Model | None, numbers: Sequence[int]) -> int | None:
        """Put a model onto a flat place of one of some objects."""
        if model is None or not len(numbers):
            return None
        number = int(self.random.choice(numbers))
        thing = self.things[number]
        heights = thing.model.heights
        yaw = self.random.uniform(0, 2 * np.pi)
        cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
        width, depth = model.size[0] * cos + model.size[2] * sin, model.size[0] * sin + model.size[2] * cos
        kernel = np.ones([int(np.ceil(side / CELL)) | 1 for side in (depth, width)], np.uint8)
        if (np.array(kernel.shape) > heights.shape).any():
            return None
        low = cv2.erode(heights, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        high = cv2.dilate(heights, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        flat = np.argwhere((high - low < 0.006) & (low > 0.3) & (low < 1.3))
        for row, column in flat[self.random.permutation(len(flat))[:TRIES]]:
            shift = np.array(
                [(column + 0.5) * CELL - thing.box.size[0] / 2, (row + 0.5) * CELL - thing.box.size[2] / 2]
            )
            x, z = thing.box.middle + shift @ thing.box.axes
            found = self.add(model, x, z, yaw, thing.box.place[1] + float(high[row, column]), number)
            if found is not None:
                return found
        return None

    def numbers(self, *kinds: str) -> list[int]:
        return [number for number, thing in enumerate(self.things) if thing.model.kind in kinds]

    # walls

    def openings(self) -> None:
        """Doors and windows."""
        walls = self.random.permutation(4)
        for wall in walls[: 1 + self.chance(0.35)]:
            self.opening(self.some("door"), int(wall), 0.0, 0.85)
        for wall in walls[::-1][: 1 + self.chance(0.6)]:
            model = self.some("window")
            if model is not None:
                tall = model.size[1] > 1.5
                self.opening(model, int(wall), 0.0 if tall else self.random.uniform(0.85, 1.0), 0.5 if tall else 0.25)

    def opening(self, model: Model | None, wall: int, bottom: float, free: float) -> None:
        """A door or window in a wall, its frame 2 cm before the wall, and `free` meters before it kept free."""
        if model is None or bottom + model.size[1] > self.size[1] - 0.05:
            return
        frame = WallFrame.of(self.size, wall)
        half, height, behind = model.size[0] / 2, float(model.size[1]), model.size[2] / 2 + model.front - 0.02
        for _ in range(TRIES if frame.length > 2 * half + 0.5 else 0):
            place = self.random.uniform(half + 0.2, frame.length - half - 0.2)
            x, z = frame.plan(place, model.size[2] / 2 - behind)
            box = boxed(model, x, bottom, z, frame.yaw)
            x, z = frame.plan(place, free / 2)
            kept = Box((float(x), bottom, float(z)), (2 * half, height, free), frame.yaw)
            if any(kept.overlaps(other, 0.15) for other in self.reserved):
                continue
            self.things.append(Thing(model, box))
            self.reserved.append(kept)
            self.holes.append((wall, place - half, place + half, bottom, bottom + height, behind + 0.01))
            return

    # themes

    def living_room(self) -> None:
        sofa = self.one_against_a_wall("sofa")
        if sofa is not None:
            table = self.before(sofa, self.some("coffee table"), self.random.uniform(0.35, 0.5))
            box = self.things[sofa].box
            if self.chance(0.75):
                self.lay_rug(box, box.size[2] / 2 + 0.7, self.random.uniform(2.0, 2.8), self.random.uniform(1.3, 1.9))
            if table is not None:
                for side in (-1, 1):
                    if self.chance(0.5):
                        self.beside(table, self.some("armchair"), side)
        elif self.chance(0.8):
            self.somewhere(self.some("armchair"))
        self.cabinets("low cabinet", "tall cabinet", count=self.whole(2, 3))
        self.somewhere_against(self.some("floor lamp"))
        self.seat(0.35)

    def dining_room(self) -> None:
        self.dining_table(self.some("table"))
        self.cabinets("low cabinet", "tall cabinet", count=self.whole(2, 3))
        if self.chance(0.3):
            self.somewhere_against(self.some("sofa"))

    def bedroom(self) -> None:
        bed = self.one_against_a_wall("bed")
        if bed is not None:
            box = self.things[bed].box
            if self.chance(0.6):
                self.lay_rug(box, 0.6, box.size[0] + 1.2, box.size[2])
            for side in (-1, 1):
                model = self.some("small cabinet")
                if model is not None:
                    back = box.size[2] / 2 - model.size[2] / 2
                    shift = side * (box.size[0] / 2 + model.size[0] / 2 + self.random.uniform(0.03, 0.1))
                    x, z = box.middle - back * box.forward + shift * box.axes[0]
                    self.add(model, x, z, box.yaw)
        self.cabinets("tall cabinet", "low cabinet", count=self.whole(1, 2))
        if self.chance(0.5):
            self.desk()
        if self.chance(0.4):
            self.somewhere(self.some("armchair", "chair"), 0.5)
        self.seat(0.2)

    def office(self) -> None:
        for _ in range(self.whole(1, 2)):
            self.desk()
        self.cabinets("tall cabinet", "low cabinet", "small cabinet", count=self.whole(2, 4))
        if self.chance(0.3):
            self.somewhere_against(self.some("sofa"))
        if self.chance(0.4):
            self.somewhere(self.some("armchair"), 0.5)

    def kitchen(self) -> None:
        """Cabinets in a row along one wall, and others above them."""
        wall = int(self.random.integers(4))
        length = WallFrame.of(self.size, wall).length
        place = self.random.uniform(0.05, 0.4)
        sink = self.random.integers(0, 3)
        for number in range(6):
            model = self.some("kitchen sink" if number == sink else "kitchen cabinet") or self.some("kitchen cabinet")
            if model is None or place + model.size[0] > length - 0.05:
                break
            self.against(model, wall, place + model.size[0] / 2)
            place += model.size[0] + 0.02
        place = self.random.uniform(0.05, 0.4)
        for _ in range(6):
            model = self.some("upper cabinet")
            if model is None or place + model.size[0] > length - 0.05:
                break
            self.against(model, wall, place + model.size[0] / 2, 1.45, gap=0.002)
            place += model.size[0] + 0.02
        self.dining_table(self.some("table"))
        if self.chance(0.4):
            self.cabinets("tall cabinet", count=1)

    def bathroom(self) -> None:
        for _ in range(self.whole(3, 5)):
            if self.chance(0.3):
                model = self.some("hung washbasin")
                if model is not None:
                    self.somewhere_against(model, float(np.clip(0.95 - model.size[1], 0.1, 0.6)), gap=0.002)
            else:
                self.somewhere_against(self.some("washbasin"))
        self.cabinets("vanity", "vanity", "small cabinet", count=self.whole(1, 2))
        if self.chance(0.3):
            self.somewhere(self.some("tub"))
        if self.chance(0.5):
            self.somewhere(self.some("chair"), 0.4)

    # their parts

    def lay_rug(self, box: Box, ahead: float, width: float, depth: float) -> None:
        """A rug on the floor, `ahead` of the middle of an object; it is a piece of the floor."""
        x, z = box.middle + ahead * box.forward
        self.rug = Box((float(x), 0.0, float(z)), (float(width), 0.0, float(depth)), box.yaw)

    def cabinets(self, *kinds: str, count: int) -> None:
        for _ in range(count):
            self.somewhere_against(self.some(*kinds))

    def beside(self, number: int, model: Model | None, side: int) -> int | None:
        """Put a model beside an object, looking at it."""
        if model is None:
            return None
        box = self.things[number].box
        gap = self.random.uniform(0.25, 0.5)
        away = side * (box.size[0] / 2 + gap + model.size[2] / 2)
        x, z = box.middle + away * box.axes[0]
        yaw = box.yaw - side * np.pi / 2 + self.random.uniform(-0.35, 0.35)
        return self.add(model, x, z, yaw)

    def desk(self) -> None:
        desk = self.somewhere_against(self.some("desk", "desk", "table"))
        if desk is not None:
            turned = np.pi + self.random.uniform(-0.5, 0.5)
            self.before(
                desk, self.some("chair"), self.random.uniform(0.03, 0.3), self.random.uniform(-0.2, 0.2), turned
            )

    def dining_table(self, model: Model | None) -> None:
        """A table with chairs of one model around it."""
        table = self.somewhere(model, 1.0, self.random.integers(4) * np.pi / 2)
        if table is None:
            return
        box = self.things[table].box
        if self.chance(0.4):
            self.lay_rug(box, 0.0, box.size[0] + 1.3, box.size[2] + 1.3)
        chair = self.some("chair")
        if chair is None:
            return
        for turn in range(4):
            yaw = box.yaw + turn * np.pi / 2
            along, out = (box.size[0], box.size[2]) if turn % 2 == 0 else (box.size[2], box.size[0])
            row = Box(box.place, (along, box.size[1], out), yaw)
            count = 2 if along > 1.3 else 1
            for place in range(count):
                if self.chance(0.75):
                    shift = (place + 0.5) / count * along - along / 2 + self.random.uniform(-0.06, 0.06)
                    gap = self.random.uniform(0.03, 0.2)
                    reach = out / 2 + gap + chair.size[2] / 2
                    x, z = box.middle + reach * row.forward + shift * row.axes[0]
                    self.add(chair, x, z, yaw + np.pi + self.random.uniform(-0.2, 0.2))

    def seat(self, probability: float) -> None:
        """Somebody on a sofa."""
        sofas = [n for n in self.numbers("sofa") if self.things[n].box.size[2] < 1.1 and self.things[n].box.top > 0.7]
        model = self.some("seated person")
        if model is not None and sofas and self.chance(probability):
            number = int(self.random.choice(sofas))
            box = self.things[number].box
            side = max(box.size[0] / 2 - 0.5, 0.0)
            ahead = 0.28 + model.size[2] / 2 - box.size[2] / 2
            shift = self.random.uniform(-side, side)
            x, z = box.middle + ahead * box.forward + shift * box.axes[0]
            self.add(model, x, z, box.yaw, 0.0, number)

    def extras(self) -> None:
        """What any room may have: plants, people, toys, small things on tables, lamps, wall plates."""
        for _ in range(self.whole(0, 2)):
            model = self.some("large plant", "large plant", "tree", "large vessel")
            if model is not None:
                self.corner(model)
        for _ in range(self.random.choice(3, p=(0.58, 0.32, 0.1))):
            kind = "person on the floor" if self.chance(0.12) else "standing person"
            self.somewhere(self.some(kind), 0.4)
        if self.chance(0.45):
            self.somewhere(self.some("car"), 0.3)
        tops = self.numbers("table", "coffee table", "desk", "low cabinet", "small cabinet", "kitchen cabinet")
        kinds = ("vessel", "vessel", "vessel", "plant", "plant", "lamp", "lamp", "car")
        for _ in range(self.random.integers(2, 4 + len(tops)) if tops else 0):
            self.on_top(self.some(str(self.random.choice(kinds))), tops)
        if self.chance(0.6):
            self.hang()
        for _ in range(self.random.choice(3, p=(0.7, 0.15, 0.15))):
            self.somewhere_against(self.some("wall lamp"), self.random.uniform(1.5, 1.75), gap=0.002)
        for _ in range(self.whole(0, 3)):
            self.picture()
        for _ in range(self.whole(1, 4)):
            model = self.some("wallplate")
            if model is not None:
                high = any(word in model.mesh.name.lower() for word in ("switch", "dimmer"))
                self.somewhere_against(model, 1.1 if high else 0.3, gap=0.001)

    def picture(self) -> None:
        """A framed picture, which is a piece of its wall."""
        width, height = self.random.uniform(0.3, 0.9), self.random.uniform(0.3, 0.7)
        for _ in range(TRIES):
            number = int(self.random.integers(4))
            wall = WallFrame.of(self.size, number)
            place, bottom = self.random.uniform(width / 2 + 0.1, wall.length - width / 2 - 0.1), 1.55 - height / 2
            x, z = wall.plan(place, 0.05)
            box = Box((float(x), bottom, float(z)), (width, height, 0.1), wall.yaw)
            if not any(box.overlaps(other, 0.05) for other in [*self.reserved, *(thing.box for thing in self.things)]):
                self.reserved.append(box)
                self.pictures.append((number, place - width / 2, place + width / 2, bottom, bottom + height))
                return

    def corner(self, model: Model) -> None:
        """Put a model near a corner of the room, or anywhere else."""
        for _ in range(4):
            inset = np.hypot(model.size[0], model.size[2]) / 2 + 0.03
            x = self.random.choice([inset, self.size[0] - inset])
            z = self.random.choice([inset, self.size[2] - inset])
            if self.add(model, x, z, self.random.uniform(0, 2 * np.pi)) is not None:
                return
        self.somewhere(model, 0.4)

    def hang(self) -> None:
        """A lamp from the ceiling: over a table, or about the middle of the room."""
        model = self.some("hanging lamp")
        if model is None:
            return
        tables = self.numbers("table")
        x, z = map(float, self.size[[0, 2]] / 2 + self.random.uniform(-0.3, 0.3, size=2))
        yaw = self.whole(0, 3) * np.pi / 2
        if tables and model.size[1] > 0.3:
            box = self.things[tables[0]].box
            x, z, yaw = box.place[0], box.place[2], box.yaw
        self.add(model, x, z, yaw, self.size[1] - model.size[1] - 0.001)
