"""Pictures of what is in an image: boxes, masks, names and scores of objects, and semantic maps."""

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from typing import Any

import numpy as np

from .files import printable

COLORS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#d4a017", "#f032e6", "#808000", "#000075",
    "#9a6324", "#46c7c7", "#800000", "#5f9e2f", "#8c8c8c", "#b09f7f", "#6f8fa8",
)  # fmt: skip
WRONG = (215, 0, 0)  # of what is wrong, in pictures; no color of a class


def palette(count: int) -> np.ndarray:
    """Colors (count, 3) uint8, red, green, blue, of so many classes: those of `COLORS`, then others."""
    first = [[int(color[place : place + 2], 16) for place in (1, 3, 5)] for color in COLORS[:count]]
    # hues at golden angles, in turns of brightness
    more = [
        [round(255 * part) for part in hsv_to_rgb(0.618034 * n % 1, 0.55 + 0.15 * (n % 3), 0.95 - 0.2 * (n // 3 % 3))]
        for n in range(max(count - len(COLORS), 0))
    ]
    return np.array(first + more, np.uint8).reshape(-1, 3)


def draw_objects(
    image: np.ndarray, objects: Sequence[Mapping[str, Any]], title: str = "", axes: Any = None, fontsize: float = 7
) -> Any:
    """A Matplotlib figure of an image with objects.

    Args:
        image: uint8 (H, W, 3), red, green, blue.
        objects: dicts of `label`, `name`, `box` [x1, y1, x2, y2] in pixels, and perhaps `score` and `mask` (H, W).
        title: line above.
        axes: where to draw, over what is there, instead of on a figure of its own.
        fontsize: of the names, in points.
    """
    from matplotlib.patches import Rectangle  # here, because only pictures need it

    axes = _shown(image, title, axes)
    for entry in objects:
        color = COLORS[entry["label"] % len(COLORS)]
        x1, y1, x2, y2 = entry["box"]
        if entry.get("mask") is not None:
            _tint(axes, np.asarray(entry["mask"], dtype=bool), color)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=fontsize / 5))
    texts = [printable(e["name"], 30) + (f" {e['score']:.2f}" if "score" in e else "") for e in objects]
    taken: list[tuple[float, float, float, float]] = []
    # over all boxes and masks; the objects on top choose their places first
    places = [_free(axes, image, taken, text, e["box"], fontsize) for text, e in zip(texts[::-1], objects[::-1])]
    for text, entry, (x, y) in zip(texts, objects, places[::-1]):
        _named(axes, x, y, text, entry["label"], fontsize, "left")
    return axes.figure


def draw_regions(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    title: str = "",
    axes: Any = None,
    fontsize: float = 7,
) -> Any:
    """A Matplotlib figure of an image with a semantic map, and in each large region the name of its class.

    Args:
        image: uint8 (H, W, 3), red, green, blue.
        labels: integers (H, W); what is no index into `names`, such as 255, stays as it is.
        names: names of the classes; () where they are not known.
        title, axes, fontsize: as of `draw_objects`.
    """
    axes = _shown(image, title, axes)
    for label in np.unique(labels).tolist():
        if not 0 <= label < (len(names) or 255):
            continue
        mask = labels == label
        _tint(axes, mask, COLORS[label % len(COLORS)])
        if mask.mean() > 0.01:
            name = printable(names[label], 30) if len(names) else f"class {label}"
            rows, columns = np.nonzero(mask)
            middle = np.argmin(abs(rows - np.median(rows)) + abs(columns - np.median(columns)))
            _named(axes, columns[middle] + 0.5, rows[middle] + 0.5, name, label, fontsize, "center")
    return axes.figure


def _shown(image: np.ndarray, title: str, axes: Any) -> Any:
    if axes is None:
        from matplotlib.figure import Figure

        height, width = image.shape[:2]
        inches = 7.5
        axes = Figure(figsize=(inches, inches * height / width + 0.3), layout="constrained", dpi=120).subplots()
    if not axes.images:
        axes.imshow(image, extent=_edges(image))
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, color="0.4", parse_math=False)
    return axes


def _named(axes: Any, x: float, y: float, text: str, label: int, fontsize: float, align: str) -> None:
    axes.text(
        x, y, text, fontsize=fontsize, color="white", va="bottom", ha=align, parse_math=False, clip_on=True,
        bbox=dict(facecolor=COLORS[label % len(COLORS)], edgecolor="none", pad=1),
    )  # fmt: skip


def _free(
    axes: Any, image: np.ndarray, taken: list, text: str, box: Sequence[float], fontsize: float
) -> tuple[float, float]:
    """Where a name begins (left, bottom): at the top of its box, within the image, and not over those of `taken`, to
    which it is added. Sizes are estimated, because nothing is laid out yet."""
    height, width = image.shape[:2]
    place, figure = axes.get_position(), axes.figure
    inches = place.width * figure.get_figwidth(), place.height * figure.get_figheight()
    point = max(width / inches[0], height / inches[1]) / 72
    tall, wide = (1.35 * fontsize + 2) * point, (0.58 * fontsize * len(text) + 2) * point
    x = max(min(box[0], width - wide), 0)
    first = y = min(max(box[1], tall), height)
    while any(x < right and left < x + wide and y - tall < low and high < y for left, high, right, low in taken):
        y += tall / 4
        if y > height:
            y = first
            break
    taken.append((x, y - tall, x + wide, y))
    return x, y


def _tint(axes: Any, mask: np.ndarray, color: str) -> None:
    from matplotlib.colors import to_rgba

    axes.imshow(np.where(mask[..., None], to_rgba(color, 0.4), 0), extent=_edges(mask))


def _edges(image: np.ndarray) -> tuple[int, int, int, int]:
    """Where an image lies: boxes count from the edges of pixels."""
    return 0, image.shape[1], image.shape[0], 0
