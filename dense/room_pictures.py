"""Pictures of furnished rooms and of the truth about them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .. import rendering
from ..drawing import COLORS, draw_objects, draw_regions
from .rooms import FLOOR, LABELS, Room, View

SMALL = 4.5  # points, of names
INK = "0.25"


def draw_rooms(rooms: Sequence[Room]) -> Figure:
    """A sheet of rooms, and the truth about the first: boxes and masks, semantic map, depth, what another view shows of
    the same, and labeled points."""
    columns = 3 if len(rooms) == 1 else 5
    rows = 1 + -(-len(rooms) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(1.5 * columns, 1.28 * rows), layout=layout)
    panels = np.ravel(figure.subplots(rows, columns))
    for axes in panels:
        axes.set_axis_off()
    views = [room.see(room.camera()) for room in rooms]
    for axes, view in zip(panels, views):
        axes.imshow(view.image)
    _draw_truth(list(panels[-5:]), rooms[0], views[0])
    return figure


def _draw_truth(panels: Sequence[Axes], room: Room, view: View) -> None:
    found = zip(*view.boxes())
    objects = [
        dict(label=int(label), name=LABELS[label], box=box.tolist(), mask=view.instances == number)
        for box, label, number in found
    ]
    draw_objects(view.image, objects, "", panels[0], SMALL)
    draw_regions(view.image, view.labels, LABELS, "", panels[1], SMALL)
    panels[2].imshow(view.depth, cmap="viridis_r")
    _draw_matches(panels[3], room, view, room.see(room.camera(1)))
    panels[4].imshow(_points(room))
    titles = ("boxes and masks", "semantic map", "depth", "another view: matches", "labeled points")
    for axes, title in zip(panels, titles):
        axes.set_title(title, fontsize=6, color=INK, pad=2)


def _draw_matches(axes: Axes, room: Room, view: View, other: View) -> None:
    """Another view, with the places of some pixels of the first, in the colors of their objects."""
    axes.imshow(other.image)
    places, visible = room.correspondence(view, other)
    grid = np.zeros_like(visible)
    grid[6::12, 6::12] = True
    chosen = visible & grid
    colors = [COLORS[label % len(COLORS)] for label in view.labels[chosen]]
    x, y = places[chosen].T
    axes.scatter(x, y, s=1.2, c=colors, linewidths=0)


def _points(room: Room) -> np.ndarray:
    """The room as points, from above, without its ceiling and the walls before it."""
    points, backward = room.points(16_000), rendering.view_direction(30, 45)
    seen = (points["label"] < FLOOR) | (points["normal"] @ backward > 0)
    pos, label = points["pos"][seen], points["label"][seen]
    colors = np.array([[int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)] for color in COLORS])
    balls = rendering.spheres(pos.astype(float), colors[label % len(COLORS)], 0.035)
    return rendering.snapshots([balls], backward, "y", 320)[0]
