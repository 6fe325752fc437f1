"""Pictures of a contrast of attention: both maps, their quotient, and what is cut out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...files import printable
from .carve import Carved, entropy

BOX = "#00c8ff"  # is seen beside all of inferno


def draw(carved: Carved, names: Sequence[str], title: str = "", layers: Sequence[int] | None = None) -> Figure:
    """The image with the box; the attention under both conditions, on one scale; the contrast; the refined image.

    Args:
        carved: what was found.
        names: two short names of the conditions.
        title: text above, of any lines.
        layers: the ones of which the attention is shown, of the L; all by default.
    """
    image, (height, width) = carved.image, carved.fused.shape
    chosen = slice(None) if layers is None else list(layers)
    means = [found[:, chosen].mean((0, 1)) for found in (carved.query, carved.general)]
    maps = [np.sum([view.spread(mean, (height, width)) for view in carved.views], axis=0) for mean in means]
    spreads = [float(entropy(mean)) for mean in means]
    tile = 2.3
    lines = title.count("\n") + 1 if title else 0
    ratios = [width / height] * 4 + [carved.refined.shape[1] / carved.refined.shape[0]]
    canvas = Figure((tile * sum(ratios) + 1.8, tile + 0.55 + 0.2 * lines), layout="constrained", dpi=110)
    if title:
        canvas.suptitle(printable_lines(title), fontsize=9, parse_math=False)
    plots = canvas.subplots(1, 5, gridspec_kw=dict(width_ratios=ratios))
    share = carved.mask.mean()
    plots[0].imshow(image)
    plots[0].set_title(f"image, {width} x {height}", fontsize=8)
    top = max(float(found.max()) for found in maps)
    for axes, found, name, spread in zip(plots[1:3], maps, names, spreads):
        _heat(axes, image, found, Normalize(0, top or 1))
        axes.set_title(f"{printable(name, 40)}\nentropy {spread:.2f} nats", fontsize=8, parse_math=False)
    _bar(canvas, plots[2], Normalize(0, top or 1))
    scale = Normalize(float(carved.fused.min()), float(carved.fused.max()))
    _heat(plots[3], image, carved.fused, scale)
    plots[3].set_title("contrast" + (": flat, no region" if carved.flat else ""), fontsize=8)
    _bar(canvas, plots[3], scale)
    x0, y0, x1, y1 = carved.box
    if not carved.flat:
        for axes in (plots[0], plots[3]):
            axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=BOX, linewidth=1.6))
    plots[4].imshow(carved.refined)
    plots[4].set_title(f"{100 * share:.0f} % kept,\nbox {x1 - x0} x {y1 - y0} at ({x0}, {y0})", fontsize=8)
    for axes in plots:
        axes.set_axis_off()
    return canvas


def printable_lines(text: str) -> str:
    """Each line safe to draw."""
    return "\n".join(printable(line, 160) for line in text.split("\n"))


def _heat(axes, image: np.ndarray, values: np.ndarray, scale: Normalize) -> None:
    """The image in gray, darkened, and a map in color over it."""
    axes.imshow(np.repeat(image.mean(2, keepdims=True), 3, axis=2).astype(np.uint8))
    axes.imshow(values, cmap="inferno", norm=scale, alpha=0.65)


def _bar(canvas: Figure, axes, scale: Normalize) -> None:
    canvas.colorbar(ScalarMappable(scale, "inferno"), ax=axes, pad=0.02, aspect=22).ax.tick_params(labelsize=6)
