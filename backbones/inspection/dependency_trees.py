"""A tree of tokens over the image that they come from: who depends on whom, and which parts hang together."""

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

# Colors of branches, those of most tokens first; further ones, and single tokens, are gray.
COLORS = [colormaps["tab10"](number)[:3] for number in range(7)]
GRAY = (0.6, 0.6, 0.6)


def branches(parents: np.ndarray) -> np.ndarray:
    """Numbers (N,) of the branches below the root that tokens belong to, from 0, those of most tokens first; -1 for the
    root, and for what hangs at no root.

    Args:
        parents: (N,), -1 for the root.
    """
    top = np.arange(len(parents))
    below = parents >= 0
    for _ in range(len(parents)):
        # climb as long as the parent is not the root
        higher = np.where(below[top] & below[parents[top]], parents[top], top)
        if (higher == top).all():
            break
        top = higher
    rooted = below & (parents[parents[top]] < 0)
    numbers = np.full(len(parents), -1)
    heads, counts = np.unique(top[rooted], return_counts=True)
    for number, head in enumerate(heads[np.argsort(-counts, kind="stable")]):
        numbers[rooted & (top == head)] = number
    return numbers


def draw_tree(
    pixels: np.ndarray,
    parents: np.ndarray,
    messages: np.ndarray,
    places: np.ndarray,
    size: tuple[int, int],
    patch: int,
    title: str = "",
) -> Figure:
    """Three panels: the image, the messages of its patches, and the tree, a color for each branch below the root.

    Args:
        pixels: image (H, W, 3), uint8.
        parents: (N,), of tokens, -1 for the root.
        messages: (N,), how much each token has to say; disks are as large.
        places: (N,), where the tokens stand on the grid of patches, row by row. Patches without a token are gray.
        size: rows and columns of the grid.
        patch: side of a patch in pixels.
        title: text above the panels.
    """
    height, width = pixels.shape[:2]
    canvas = Figure((3 * 4.2, 4.2 * height / width + 0.7), layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10)
    left, middle, right = canvas.subplots(1, 3)
    for axes in (left, middle, right):
        axes.set_axis_off()
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)

    left.imshow(pixels)
    left.set_title(f"{size[0]} x {size[1]} patches, {len(parents)} tokens", fontsize=9)
    extent = (-0.5, size[1] * patch - 0.5, size[0] * patch - 0.5, -0.5)
    spoken = np.full(size[0] * size[1], np.nan)
    spoken[places] = messages
    colors = colormaps["inferno"].with_extremes(bad="lightgray")
    shown = middle.imshow(spoken.reshape(size), cmap=colors, vmin=0, extent=extent)
    middle.set_title("messages", fontsize=9)
    bar = canvas.colorbar(shown, cax=middle.inset_axes((1.015, 0, 0.03, 1)))
    bar.ax.tick_params(labelsize=7)

    numbers = branches(parents)
    several = int((np.bincount(numbers + 1)[1:] > 1).sum())
    tints = [COLORS[n] if 0 <= n < min(several, len(COLORS)) else GRAY for n in numbers]
    gray = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2).astype(np.uint8)
    right.imshow(gray, alpha=0.45)
    areas = np.zeros((size[0] * size[1], 4))
    areas[places] = [(*tint, 0.3) for tint in tints]
    right.imshow(areas.reshape(*size, 4), extent=extent)
    rows, columns = np.divmod(places, size[1])
    # the middle of what is seen of a patch: those of the last row and column may reach beyond the image
    ends = np.minimum(np.stack([columns + 1, rows + 1], 1) * patch, (width, height))
    centers = (np.stack([columns, rows], 1) * patch + ends - 1) / 2
    children = np.flatnonzero(parents >= 0)
    edges = np.stack([centers[children], centers[parents[children]]], 1)
    plain = [tints[i] == GRAY for i in children]  # faint, where most tokens hang at the root by themselves
    widths = [0.3 if one else 0.9 for one in plain]
    right.add_collection(LineCollection(list(edges), colors=[tints[i] for i in children], linewidths=widths))
    scale = messages / max(float(messages.max()), 1e-12)
    right.scatter(*centers.T, s=3 + 22 * scale, c=tints, edgecolors="black", linewidths=0.3, zorder=3)
    right.scatter(*centers[parents < 0].T, s=90, c="white", marker="*", edgecolors="black", linewidths=0.8, zorder=4)
    right.set_title(
        f"tree with {several} branch{'es' * (several != 1)} of several tokens, its root the star", fontsize=9
    )
    return canvas
