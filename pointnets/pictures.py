"""Pictures of clouds whose points are labelled: the cloud, the truth, what networks predict, and what of it is wrong.

Points are drawn as discs across their normals, so that they close to surfaces. A room is seen as a doll's house: of its
shell, what stands between the eye and the inside is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..browsing import choose
from ..data import one_of, seeded
from ..drawing import WRONG
from ..files import printable
from ..inference import Inferencer
from ..rendering import (
    CLAY,
    Camera,
    Mesh,
    camera_frame,
    center_of,
    discs,
    joined,
    look,
    point_spacing,
    render_colors,
    view_direction,
    window,
)
from .datasets import PointClouds, RotatedViews
from .inference import PointSegmentation, class_colors, standing
from .transforms import GROUPS, estimated_normals, random_rotation, rotate

SHELL = ("board", "ceiling", "door", "floor", "wall", "window")  # classes that are opened, where there are such
SHOWN = 100_000  # most points of a cloud in a picture
PANEL, CORNERS = 2.6, 8  # inches of a panel; corners of a disc
SPREAD = 1.25  # radius of a disc, in distances to the third neighbor
TURNS = {"none": "upright", "z": "turned about the up axis", "SO3": "turned"}


@dataclass(frozen=True)
class Labelled:
    """A cloud in one pose, with the labels of its points.

    Args:
        name: name of the cloud and of its pose.
        points, normals: float64 (N, 3).
        colors: colors (N, 3) in [0, 1]; None where the data have none.
        truth: labels (N,).
        found: labels (N,) that networks predict, by name.
        classes: names of the labels.
        up: axis that points up before the cloud is turned, "y" or "z".
    """

    name: str
    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray | None
    truth: np.ndarray
    found: dict[str, np.ndarray]
    classes: Sequence[str]
    up: str


def ask(
    dataset: PointClouds | RotatedViews,
    item: int,
    networks: Mapping[str, Inferencer],
    group: str = "none",
    seed: int = 0,
) -> Labelled:
    """An item of a data set as it is in its file, turned, and labelled by networks.

    Args:
        dataset: clouds with `point_label`; of `RotatedViews`, those inside.
        item: number of a cloud.
        networks: segmenters of points by name.
        group: rotations of which one is drawn, see `random_rotation`.
        seed: of the rotation, with the number of the item.

    Raises:
        ValueError: the data have no labels of points, a model is no segmenter of points or one of other classes, or
            there is no such item.
    """
    clouds = dataset.dataset if isinstance(dataset, RotatedViews) else dataset
    for name, network in networks.items():
        if not isinstance(network.task, PointSegmentation):
            raise ValueError(f"{name} is a {type(network.model).__name__}, and must be a PointSegmenter")
        if network.model.classes and network.model.classes != clouds.classes:
            names = ", ".join(map(printable, network.model.classes))
            raise ValueError(f"{name} knows other classes than the data: {names}")
    (item,) = choose(clouds, 1, [item])
    data = clouds.get(item)
    if data.get("point_label") is None:
        raise ValueError(f"{clouds.name(item)} has no labels of its points; the data must be those of segmentation")
    model = next(iter(networks.values())).model
    up = model.up if model.block else "y"  # as the model says of its predictions
    with seeded(seed, item):
        data = rotate(data, random_rotation(one_of("group", group, GROUPS), up))
    asked = dict(pos=data.pos.numpy())
    if data.get("normal") is not None:
        asked["normal"] = data.normal.numpy()
    found = {}
    for name, network in networks.items():
        told = clouds.categories is not None and network.model.network.num_categories
        (result,) = network([asked | dict(category=int(data.y)) if told else dict(asked)])
        if "error" in result:
            raise ValueError(f"{name}: {printable(data.name)}: {result['error']}")
        found[name] = np.array(result["labels"])
    points = data.pos.double()
    points -= points.mean(0)
    normals = data.normal if "normal" in asked else estimated_normals(points)
    (points, stands), (normals, _) = (standing(x.double().numpy(), up) for x in (points, normals))
    colors = None if data.get("color") is None else data.color.numpy() / 255
    name = f"{item}: {printable(data.name, 40)}, {TURNS[group]}"
    truth = data.point_label.numpy()
    return Labelled(name, points, normals, colors, truth, found, clouds.classes, stands)


def shell_of(classes: Sequence[str], names: Sequence[str] | None = None) -> list[int]:
    """The numbers of the classes that are opened: of `names`, or of those of `SHELL` that there are.

    Raises:
        ValueError: there is no class of a name.
    """
    if names is None:
        names = [name for name in SHELL if name in classes]
    for name in names:
        one_of("open", name, tuple(classes))
    return [list(classes).index(name) for name in names]


class Drawing:
    """The discs of a cloud, in whatever colors.

    Args:
        seen: what `ask` gave.
        shell: numbers of the classes that are opened.
        shown: number of points that are drawn, at most.
    """

    def __init__(self, seen: Labelled, shell: Sequence[int], shown: int = SHOWN):
        self.rows = np.random.default_rng(0).permutation(len(seen.points))[:shown]
        self.points = seen.points[self.rows]
        self.is_shell = np.isin(seen.truth[self.rows], shell)
        # the shell faces the middle of the scene, as the walls of a convex room do
        normals = seen.normals[self.rows]
        outward = np.einsum("nc,nc->n", normals, self.points) > 0
        self.normals = np.where((self.is_shell & outward)[:, None], -normals, normals)
        if len(self.points) > 1:
            spacing = point_spacing(self.points)
            middle = np.median(spacing)
            self.radius = SPREAD * np.clip(spacing, 0.5 * middle, 1.5 * middle)
        else:
            self.radius = np.ones(len(self.points))

    def from_eye(self, colors: Sequence[np.ndarray], backward: np.ndarray) -> tuple[Mesh, list[np.ndarray]]:
        """The discs that an eye in this direction sees, without colors, and those of their corners, of some colors
        (N, 3) of all points of the cloud. What would leave nothing to see is not opened."""
        seen = ~self.is_shell | (self.normals @ backward > 0)
        if not seen.any():
            seen[:] = True
        mesh = discs(self.points[seen], self.normals[seen], CLAY, self.radius[seen], CORNERS)
        return mesh, [np.repeat(one[self.rows[seen]], CORNERS, axis=0) for one in colors]

    def all_round(self, colors: np.ndarray) -> Mesh:
        """Discs for a window, which shows no backs: the shell has one face, and all else has two."""
        colors, two = colors[self.rows], ~self.is_shell
        back = discs(self.points[two], -self.normals[two], colors[two], self.radius[two], CORNERS)
        return joined(discs(self.points, self.normals, colors, self.radius, CORNERS), back)


def panels(seen: Labelled, colored: bool) -> dict[str, np.ndarray]:
    """Colors (N, 3) of the points in each panel, by its title. With `colored` the first has the cloud's own colors, and
    is of clay where it has none."""
    clay = np.tile(CLAY, (len(seen.points), 1))
    found = {"points": clay if seen.colors is None else seen.colors} if colored else {}
    found["truth"] = class_colors(seen.truth) / 255
    for name, labels in seen.found.items():
        wrong = labels != seen.truth
        found[f"{name}: predicted"] = class_colors(labels) / 255
        found[f"{name}: wrong"] = np.where(wrong[:, None], np.array(WRONG) / 255, clay)
    return found


def photograph(
    views: Sequence[tuple[Drawing, Sequence[np.ndarray], np.ndarray]], up: str, size: int
) -> list[list[np.ndarray]]:
    """Pictures of clouds in several colors, each cloud centered, all at one scale and cut to one width.

    Args:
        views: drawings with the colors (N, 3) of the points, and the direction to the eye.
        up: axis that points up in the pictures.
        size: pixels of a side before cutting.
    """
    taken = []
    for drawing, colors, backward in views:
        mesh, corners = drawing.from_eye(colors, backward)
        frame = camera_frame(backward, up)
        mesh.translate(-center_of(mesh, frame))
        taken.append((mesh, corners, frame))
    distance = max(look([mesh], frame).eye @ frame[2] for mesh, _, frame in taken)
    found = [render_colors(mesh, corners, Camera(frame, distance * frame[2]), size) for mesh, corners, frame in taken]
    seen = np.max([pictures[0][..., 3] for pictures in found], axis=0) > 0
    columns = np.flatnonzero(seen.any(0))
    return [[picture[:, columns[0] : columns[-1] + 1] for picture in pictures] for pictures in found]


def draw_segments(
    seen: Sequence[Labelled],
    azimuth: float = 30,
    elevation: float = 40,
    around: int = 1,
    shell: Sequence[str] | None = None,
    size: int = 640,
) -> Figure:
    """Clouds below each other: in their colors, if some have any, with the true labels, with those that each network
    predicts, and with what is wrong in red.

    Args:
        seen: clouds, all with the same networks.
        azimuth, elevation: degrees, of the eye.
        around: number of eyes around the up axis. With several, each panel is a row, and each eye a column.
        shell: names of classes that are opened; see `shell_of`.
        size: pixels of a side of a panel, before it is cut to what is seen.

    Raises:
        ValueError: `around` is below 1, or above 1 with several clouds.
    """
    if around < 1 or (around > 1 and len(seen) > 1):
        raise ValueError(f"around is {around}; it must be at least 1, and 1 for {len(seen)} clouds or poses")
    up = seen[0].up
    eyes = [view_direction(azimuth + 360 * turn / around, elevation, up) for turn in range(around)]
    opened = shell_of(seen[0].classes, shell)
    colored = any(one.colors is not None for one in seen)
    colors = [panels(one, colored) for one in seen]
    views = [
        (drawing, list(by_title.values()), eye)
        for drawing, by_title in zip((Drawing(one, opened) for one in seen), colors)
        for eye in eyes
    ]
    pictures = photograph(views, up, size)
    titles = list(colors[0])
    shares = [
        {
            f"{name}: predicted": f"{100 * (found == one.truth).mean():.1f} % of the points right"
            for name, found in one.found.items()
        }
        for one in seen
    ]
    if around > 1:
        names = [f"{title}\n{shares[0][title]}" if title in shares[0] else title for title in titles]
        turns = [f"{360 * turn / around:.0f}°" for turn in range(around)]
        figure = draw_grid(list(zip(*pictures)), [[""] * around] * len(titles), turns, names)
        figure.suptitle(seen[0].name, fontsize=10, color="0.4", parse_math=False)
    else:
        below = [[share.get(title, "") for title in titles] for share in shares]
        figure = draw_grid(pictures, below, titles, [one.name for one in seen])
    there = np.unique(np.concatenate([labels for one in seen for labels in (one.truth, *one.found.values())]))
    labels = [printable(seen[0].classes[label], 40).replace("$", r"\$") for label in there]
    colors_of = class_colors(there).tolist()
    if any(one.found for one in seen):
        labels, colors_of = [*labels, "wrong"], [*colors_of, WRONG]
    handles = [Patch(color=(r / 255, g / 255, b / 255), label=label) for label, (r, g, b) in zip(labels, colors_of)]
    width = max(map(len, labels))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.45 + 0.075 * width))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return figure


def draw_grid(
    pictures: Sequence[Sequence[np.ndarray]],
    below: Sequence[Sequence[str]],
    columns: Sequence[str],
    rows: Sequence[str],
) -> Figure:
    """Pictures of one size in rows, each row cut to its height, with a text below each picture, and titles of columns
    and rows."""
    seen = [np.flatnonzero(np.max([picture[..., 3].max(1) for picture in line], axis=0)) for line in pictures]
    heights = [place[-1] + 1 - place[0] for place in seen]
    size = len(columns) * PANEL + 0.3, PANEL * sum(heights) / pictures[0][0].shape[1] + 0.25 * len(rows) + 0.9
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for row, (line, texts) in enumerate(zip(pictures, below)):
        for axes, picture, text in zip(grid[row], line, texts):
            axes.imshow(picture[seen[row][0] : seen[row][-1] + 1], interpolation="antialiased")
            axes.set(xticks=(), yticks=())
            axes.spines[:].set_visible(False)
            axes.set_xlabel(text, fontsize=8, color="0.4", labelpad=2)
    for axes, title in zip(grid[0], columns):
        axes.set_title(title, fontsize=10, color="0.2", parse_math=False)
    for axes, title in zip(grid[:, 0], rows):
        axes.set_ylabel(title, fontsize=9, color="0.4", parse_math=False)
    return figure


def show_segments(seen: Sequence[Labelled], shell: Sequence[str] | None = None) -> None:
    """The same clouds in a window, side by side. RuntimeError where there is no display."""
    drawings = [Drawing(one, shell_of(one.classes, shell)) for one in seen]
    meshes = [
        drawing.all_round(colors)
        for drawing, one in zip(drawings, seen)
        for colors in panels(one, one.colors is not None).values()
    ]
    window(meshes, ", ".join(one.name for one in seen), backs=False)
