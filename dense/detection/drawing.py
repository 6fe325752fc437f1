"""Pictures of objects: boxes, masks, names and scores on an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...files import printable

COLORS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#d4a017", "#f032e6", "#808000", "#000075",
    "#9a6324", "#46c7c7", "#800000", "#5f9e2f",
)  # fmt: skip


def draw_objects(image: np.ndarray, objects: Sequence[Mapping[str, Any]], title: str = "", axes: Any = None) -> Any:
    """A Matplotlib figure of an image with objects.

    Args:
        image: uint8 (H, W, 3), red, green, blue.
        objects: dicts of `label`, `name`, `box` [x1, y1, x2, y2] in pixels, and perhaps `score` and `mask` (an array
            (H, W), or COCO's run lengths).
        title: line above.
        axes: where to draw, instead of on a figure of its own.
    """
    from matplotlib.figure import Figure  # here, because only pictures need it
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    edges = (0, width, height, 0)  # boxes count from the edges of pixels
    if axes is None:
        inches = 7.5
        axes = Figure(figsize=(inches, inches * height / width + 0.3), layout="constrained", dpi=120).subplots()
    axes.imshow(image, extent=edges)
    axes.set_axis_off()
    for entry in objects:
        color = COLORS[entry["label"] % len(COLORS)]
        x1, y1, x2, y2 = entry["box"]
        if entry.get("mask") is not None:
            axes.imshow(_tinted(_decoded(entry["mask"]), color), extent=edges)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.4))
        score = f" {entry['score']:.2f}" if "score" in entry else ""
        axes.text(
            x1, y1, f"{printable(entry['name'], 30)}{score}", fontsize=7, color="white", va="bottom", parse_math=False,
            clip_on=True, bbox=dict(facecolor=color, edgecolor="none", pad=1),
        )  # fmt: skip
    axes.set_title(title, fontsize=9, color="0.4", parse_math=False)
    return axes.figure


def _decoded(mask: Any) -> np.ndarray:
    if not isinstance(mask, Mapping):
        return np.asarray(mask, dtype=bool)
    from pycocotools import mask as runs

    return runs.decode(dict(mask)).astype(bool)


def _tinted(mask: np.ndarray, color: str) -> np.ndarray:
    from matplotlib.colors import to_rgba

    return np.where(mask[..., None], to_rgba(color, 0.4), 0)
