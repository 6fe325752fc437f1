"""Pictures of scanpaths: circles with the number of each look, on the objects, joined by lines."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LOOK, TARGET = "#0072b2", "#d55e00"  # of a palette that the color-blind tell apart
Panel = tuple[str, np.ndarray, np.ndarray, Sequence[int], int]  # title, image, boxes, path, target


def draw_scanpaths(rows: Sequence[Sequence[Panel]]) -> Any:
    """A Matplotlib figure of paths over their pictures.

    Args:
        rows: rows of panels: title, image uint8 (H, W, 3), boxes (N, 4) in pixels, path of objects, and target. Rows
            have one length. Looks at one object stand beside each other in its box.
    """
    from matplotlib.figure import Figure

    height, width = rows[0][0][1].shape[:2]
    columns = max(map(len, rows))
    side = 10 / columns
    canvas = Figure(figsize=(10, len(rows) * (side * height / width + 0.35)), layout="constrained", dpi=100)
    for axes, panel in zip(canvas.subplots(len(rows), columns, squeeze=False).flat, (p for row in rows for p in row)):
        _draw(axes, *panel)
    return canvas


def draw_predictions(dataset: Any, inferencer: Any, items: Sequence[int]) -> Any:
    """A figure of paths of a data set of scanpaths, and below each a predicted one, the first of those that are drawn.

    Raises:
        ValueError: no such item; the data are no scanpaths, or the network cannot answer.
    """
    rows: tuple[list[Panel], list[Panel]] = ([], [])
    for item in items:
        if not 0 <= item < len(dataset):
            raise ValueError(f"there is no item {item} in the test data; they have 0 to {len(dataset) - 1}.")
        scene = dataset.get(int(dataset.items[item]))
        if not isinstance(scene, dict) or not {"boxes", "target", "path"} <= scene.keys():
            raise ValueError(f"the test data ({type(dataset).__name__}) hold no scanpaths.")
        (answer,) = inferencer([{name: scene[name] for name in ("image", "boxes", "target")}])
        if "error" in answer:
            raise ValueError(f"{scene['name']}: {answer['error']}")
        rows[0].append(("true", scene["image"], scene["boxes"], scene["path"], scene["target"]))
        rows[1].append(("predicted", scene["image"], scene["boxes"], answer["paths"][0], scene["target"]))
    return draw_scanpaths(rows)


def _draw(axes: Any, title: str, image: np.ndarray, boxes: np.ndarray, path: Sequence[int], target: int) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(image // 2 + 127, interpolation="antialiased")  # pale, so that the path stands out
    axes.set_axis_off()
    axes.set_title(f"{title}: {len(path)} looks", fontsize=10)
    x1, y1, x2, y2 = boxes[target]
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=TARGET, linewidth=3))
    points = []
    for number, place in enumerate(path):
        x1, y1, x2, y2 = boxes[place]
        before = list(path[:number]).count(place)  # looks at one object lie side by side
        shift = (before + 1) / (list(path).count(place) + 1)
        points.append((x1 + (x2 - x1) * shift, (y1 + y2) / 2 + (0.18 * (y2 - y1) if before % 2 else 0)))
    if not points:
        return
    axes.plot(*np.transpose(points), color=LOOK, linewidth=1.6, alpha=0.8)
    for number, ((x, y), place) in enumerate(zip(points, path), 1):
        color = TARGET if place == target else LOOK
        axes.scatter([x], [y], s=130, color=color, edgecolors="white", linewidths=1, zorder=3)
        axes.text(x, y, str(number), color="white", fontsize=8, ha="center", va="center_baseline", zorder=4)
