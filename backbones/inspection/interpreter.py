"""Scores of patches over the image that they come from, and the patches that a network keeps for them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

LEAST = 0.48  # of the scale of scores, as of `Interpretation.heat_map`


def draw_scores(
    pixels: np.ndarray, scores: Sequence[np.ndarray], kept: Sequence[np.ndarray], patch: int, title: str = ""
) -> Figure:
    """The image, and a column for each group of blocks: the scores of its patches above, those that stay below.

    Args:
        pixels: image (H, W, 3), uint8.
        scores: maps (h, w), one for each group.
        kept: bool, alike.
        patch: side of a patch in pixels.
        title: text above all panels.
    """
    height, width = pixels.shape[:2]
    columns, tile = len(scores) + 1, 2.6
    canvas = Figure((tile * columns + 0.8, 2 * (tile * height / width + 0.4)), layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10)
    panels = canvas.subplots(2, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    panels[0, 0].imshow(pixels)
    rows, across = scores[0].shape
    panels[0, 0].set_title(f"{rows} x {across} patches", fontsize=9)
    gray = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2).astype(np.uint8)
    for group, (map_, mask) in enumerate(zip(scores, kept)):
        above, below = panels[:, group + 1]
        above.imshow(gray // 2)  # dark, so that a score looks alike on white and on black
        extent = (-0.5, across * patch - 0.5, rows * patch - 0.5, -0.5)
        shown = above.imshow(map_, cmap="inferno", vmin=LEAST, vmax=1, alpha=0.6, extent=extent)
        above.set_title(f"scores of group {group}", fontsize=9)
        stays = mask.repeat(patch, 0).repeat(patch, 1)[:height, :width, None]
        below.imshow(np.where(stays, pixels, pixels // 6))
        below.set_title(f"{mask.sum()} of {mask.size} stay", fontsize=9)
        for axes in (above, below):  # without what filling up the image has added
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_ylim(height - 0.5, -0.5)
    bar = canvas.colorbar(shown, ax=list(panels[0]), pad=0.01, aspect=25)
    bar.solids.set(alpha=1)  # type: ignore[union-attr]
    bar.ax.tick_params(labelsize=7)
    return canvas
