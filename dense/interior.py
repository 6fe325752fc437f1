"""Floor, walls and ceiling of a room: their shapes, colors and patterns, and what lights the room."""

from dataclasses import dataclass

import numpy as np

from ..rendering import Mesh, joined, surface
from .furnishing import Furnishing, WallFrame

FLOORS = (  # sRGB of boards, tiles and carpets
    ("boards", (0.66, 0.47, 0.30)), ("boards", (0.48, 0.32, 0.20)), ("boards", (0.78, 0.63, 0.45)),
    ("boards", (0.58, 0.50, 0.42)), ("tiles", (0.78, 0.76, 0.72)), ("tiles", (0.60, 0.58, 0.56)),
    ("tiles", (0.72, 0.55, 0.44)), ("checkers", (0.86, 0.85, 0.82)), ("carpet", (0.62, 0.58, 0.52)),
    ("carpet", (0.42, 0.46, 0.54)), ("carpet", (0.55, 0.40, 0.36)),
)  # fmt: skip
WALLS = (
    (0.93, 0.91, 0.86), (0.90, 0.90, 0.90), (0.88, 0.82, 0.70), (0.76, 0.82, 0.80), (0.72, 0.79, 0.86),
    (0.90, 0.80, 0.74), (0.80, 0.84, 0.72), (0.86, 0.78, 0.82), (0.95, 0.93, 0.90),
)  # fmt: skip
SKY, GROUND = np.array([0.75, 0.88, 1.0]), np.array([0.45, 0.52, 0.38])  # what a window shows, as light
SKIRTING = (0.012, 0.08)  # meters: how far it stands out, and how high


@dataclass(frozen=True)
class Emitter:
    """A source of light: its middle (3,), half its extents as vectors (3, 3), its power by color (3,), and the
    direction (3,) that it faces; None shines everywhere."""

    place: np.ndarray
    extent: np.ndarray
    power: np.ndarray
    facing: np.ndarray | None


def quads(corners: np.ndarray, color) -> Mesh:
    """Rectangles (N, 4, 3), each counter-clockwise seen from its front."""
    faces = (np.array([[0, 1, 2], [0, 2, 3]]) + 4 * np.arange(len(corners))[:, None, None]).reshape(-1, 3)
    return surface(corners.reshape(-1, 3), faces, np.repeat(np.broadcast_to(color, (len(corners), 3)), 6, axis=0))


class Interior:
    """What holds and lights the things of a furnishing.

    Attributes:
        emitters: a lamp, and a window where there is one.
        ambient: light (3,) that comes from all around.
        daylight: strength of the light outside.
        brightness: how brightly pictures are exposed, about 1.
    """

    def __init__(self, furnishing: Furnishing, random: np.random.Generator):
        self.size, self.holes = furnishing.size, furnishing.holes
        self.pictures, self.rug = furnishing.pictures, furnishing.rug
        style = 4 + random.integers(4) if furnishing.theme in ("kitchen", "bathroom") else random.integers(len(FLOORS))
        self.flooring, color = FLOORS[style]
        shade = random.uniform(0.85, 1.1)
        self.floor_color = np.clip(np.array(color) * shade + random.uniform(-0.03, 0.03, 3), 0.05, 0.95)
        self.floor_step = {"boards": random.uniform(0.11, 0.2), "carpet": 0.01}.get(
            self.flooring, random.uniform(0.3, 0.5)
        )
        self.floor_turned = bool(random.integers(2))
        self.table = random.random((64, 64)).astype(np.float32)  # of irregularities
        plain = np.array(WALLS[random.integers(len(WALLS))])
        self.wall_color = np.clip(plain + random.uniform(-0.03, 0.03, 3), 0.3, 0.96)
        self.accent = int(random.integers(4)) if random.random() < 0.3 else -1  # a wall of another color
        self.accent_color = np.clip(self.wall_color * random.uniform(0.55, 0.9, 3), 0.1, 0.95)
        self.wall_style = str(random.choice(("plain", "stripes", "two colors"), p=(0.7, 0.12, 0.18)))
        if furnishing.theme == "bathroom":
            self.wall_style = "tiles"
        self.skirting_color = (0.92, 0.91, 0.89) if random.random() < 0.6 else tuple(0.75 * self.floor_color)
        self.rug_color = random.uniform(0.35, 0.75) * (1 - random.uniform(0.1, 0.5) * random.random(3))
        self.frame_color = np.array([(0.12, 0.11, 0.10), (0.9, 0.89, 0.87), (0.45, 0.31, 0.2)][random.integers(3)])
        self.picture_colors = random.uniform(0.15, 0.9, (len(self.pictures), 3, 3))
        width, height, depth = self.size
        lamps = [thing.box for thing in furnishing.things if thing.model.kind == "hanging lamp"]
        x, z = (lamps[0].place[0], lamps[0].place[2]) if lamps else (width / 2, depth / 2)
        y = min(lamps[0].place[1] if lamps else height, height - 0.1) - 0.12
        warm = np.array([1.0, 0.93, 0.82]) ** random.uniform(0, 1.5)
        self.daylight = random.uniform(0.5, 2.2)
        self.emitters = [Emitter(np.array([x, y, z]), 0.2 * np.eye(3), random.uniform(0.7, 1.6) * warm, None)]
        for window in [thing for thing in furnishing.things if thing.model.kind == "window"][:1]:
            box = window.box
            (right, _), front = box.axes, np.array([box.forward[0], 0, box.forward[1]])
            extent = np.array([[right[0] * box.size[0], 0, right[1] * box.size[0]], [0, box.size[1], 0], [0, 0, 0]]) / 2
            middle = np.array(box.place) + [0, box.size[1] / 2, 0] + (box.size[2] / 2 + 0.05) * front
            area = min(box.size[0] * box.size[1], 2.5)
            self.emitters.append(Emitter(middle, extent, 0.9 * self.daylight * area * SKY, front))
        self.ambient = (0.35 + 0.45 * self.wall_color**2.2) * random.uniform(0.30, 0.42)
        self.brightness = random.uniform(0.85, 1.15)

    def meshes(self) -> list[Mesh]:
        """Floor, walls and ceiling."""
        width, height, depth = self.size
        out = 0.5  # they reach beyond each other, or rays would slip out through the edges
        low, high = -out, np.array([width, depth]) + out
        ground = np.array([[low, 0, low], [low, 0, high[1]], [high[0], 0, high[1]], [high[0], 0, low]])
        walls = [self._wall(number) for number in range(4)]
        ceiling = ground[::-1] + np.array([0, height, 0])
        return [quads(ground[None], self.floor_color), joined(*walls), quads(ceiling[None], (0.95, 0.95, 0.94))]

    def _wall(self, number: int) -> Mesh:
        """A wall with niches for doors and windows, and its skirting board."""
        frame, height, out = WallFrame.of(self.size, number), float(self.size[1]), 0.05
        holes = [hole[1:] for hole in self.holes if hole[0] == number]
        sides: list[list[tuple[float, float, float]]] = []

        def upright(left: float, right: float, bottom: float, top: float, inward: float) -> None:
            sides.append([(left, bottom, inward), (right, bottom, inward), (right, top, inward), (left, top, inward)])

        cuts = sorted({-out, frame.length + out, *(value for hole in holes for value in hole[:2])})
        levels = sorted({-out, height + out, *(value for hole in holes for value in hole[2:4])})
        for left, right in zip(cuts, cuts[1:]):
            for bottom, top in zip(levels, levels[1:]):
                x, y = (left + right) / 2, (bottom + top) / 2
                if not any(a < x < b and c < y < d for a, b, c, d, _ in holes):
                    upright(left, right, bottom, top, 0.0)
        for left, right, bottom, top, depth in holes:
            upright(left, right, bottom, top, -depth)
            sides.append([(left, bottom, 0), (left, bottom, -depth), (left, top, -depth), (left, top, 0)])
            sides.append([(right, bottom, -depth), (right, bottom, 0), (right, top, 0), (right, top, -depth)])
            sides.append([(right, top, -depth), (right, top, 0), (left, top, 0), (left, top, -depth)])
            if bottom > 0:  # the floor reaches below a door
                sides.append([(left, bottom, -depth), (left, bottom, 0), (right, bottom, 0), (right, bottom, -depth)])
        flat = len(sides)
        doors = sorted(hole[:2] for hole in holes if hole[2] < SKIRTING[1])
        ends = [0.0, *(value for door in doors for value in door), frame.length]
        inward, top = SKIRTING
        for left, right in zip(ends[::2], ends[1::2]):
            upright(left, right, 0.0, top, inward)
            sides.append([(left, top, inward), (right, top, inward), (right, top, 0), (left, top, 0)])
        color = self.accent_color if number == self.accent else self.wall_color
        colors = [color] * flat + [self.skirting_color] * (len(sides) - flat)
        for (wall, left, right, bottom, top), (sky, land, thing) in zip(self.pictures, self.picture_colors):
            if wall == number:
                upright(left, right, bottom, top, 0.02)
                left, right, bottom, top = left + 0.03, right - 0.03, bottom + 0.03, top - 0.03
                upright(left, right, bottom, top, 0.021)
                upright(left, right, bottom, bottom + 0.4 * (top - bottom), 0.022)
                middle = 0.6 * left + 0.4 * right
                upright(
                    middle,
                    middle + 0.2 * (right - left),
                    bottom + 0.2 * (top - bottom),
                    0.25 * bottom + 0.75 * top,
                    0.023,
                )
                colors += [self.frame_color, sky, land, thing]
        corners = np.array([frame.room(side) for side in sides])
        return quads(corners, np.array(colors))

    def painted(self, meshes: np.ndarray, places: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """The colors (N, 3) of points (N, 3) on surfaces: the patterns of floor and walls over their plain colors."""
        colors = colors.copy()
        floor = np.flatnonzero(meshes == 0)
        x, z = places[floor, 0], places[floor, 2]
        colors[floor] *= self._pattern(*((z, x) if self.floor_turned else (x, z)))[:, None]
        if self.rug is not None:
            shift = (places[floor][:, [0, 2]] - self.rug.middle).astype(np.float32) @ self.rug.axes.T.astype(np.float32)
            half = np.array([self.rug.size[0], self.rug.size[2]], np.float32) / 2
            inside = (half - abs(shift)).min(1)  # meters from the border
            on = inside > 0
            band = np.where((inside > 0.06) & (inside < 0.12), 0.72, 1.0) * (0.93 + 0.14 * self._speckle(x, z, 0.012))
            colors[floor[on]] = (self.rug_color * band[on, None]).astype(np.float32)
        if self.wall_style != "plain":
            plain = (abs(colors - self.wall_color) < 1e-3).all(1) | (abs(colors - self.accent_color) < 1e-3).all(1)
            wall = np.flatnonzero((meshes == 1) & plain)
            along = places[wall, 0] + places[wall, 2]
            up = places[wall, 1]
            if self.wall_style == "stripes":
                factor = np.where(along % 0.24 < 0.12, 1.0, 0.92)
            elif self.wall_style == "two colors":
                factor = np.where(up < 0.95, 0.78, np.where(up < 1.0, 0.6, 1.0))
            else:  # tiles
                joint = (along % 0.2 < 0.006) | (up % 0.2 < 0.006)
                factor = np.where(up < 1.8, np.where(joint, 0.8, 1.0), 0.95)
            colors[wall] *= factor[:, None].astype(np.float32)
        return colors

    def _speckle(self, x: np.ndarray, z: np.ndarray, step: float) -> np.ndarray:
        """Irregularities in [0, 1), each of a cell of `step` meters."""
        return self.table[np.floor(x / step).astype(int) % 64, np.floor(z / step).astype(int) % 64]

    def _pattern(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """How bright the floor is by place."""
        step = self.floor_step
        if self.flooring == "carpet":
            return 0.9 + 0.2 * self._speckle(x, z, step)
        if self.flooring == "boards":
            board = np.floor(x / step)
            run = z + 1.7 * self.table[board.astype(int) % 64, 0]
            tone = self.table[board.astype(int) % 64, np.floor(run / 1.3).astype(int) % 64]
            grain = self._speckle(x * 9, run * 0.4, step)
            joint = (x % step < 0.004) | (run % 1.3 < 0.004)
            return (0.86 + 0.22 * tone + 0.07 * grain) * np.where(joint, 0.7, 1.0)
        tile = self._speckle(x, z, step)
        factor = 0.95 + 0.08 * tile
        if self.flooring == "checkers":
            return factor * np.where((np.floor(x / step) + np.floor(z / step)) % 2 > 0, 1.0, 0.35)
        return factor * np.where((x % step < 0.006) | (z % step < 0.006), 0.75, 1.0)
