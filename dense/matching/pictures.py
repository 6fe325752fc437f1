"""Pictures of matches: lines between two images, flow as arrows, and the other image warped to the first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from torch import Tensor

from ...browsing import choose
from .matcher import Matcher
from .warps import Warp, middles

SMALL, INK, ARROWS, LINES = 8, "0.25", 14, 40
COLORS = colormaps["cividis"]


def draw_pairs(dataset: Any, model: Matcher, items: Sequence[int]) -> Figure:
    """Pairs of a data set, a row each: source and target with known matches and where the network puts them, the flow
    at the source's pixels, and the target warped to the source by it.

    Raises:
        ValueError: there is no such item, or one has no known matches.
    """
    choose(dataset, 1, items)
    figure = Figure((11.5, 2.35 * len(items)), dpi=110, layout="constrained")
    panels = figure.subplots(len(items), 4, squeeze=False)
    for row, (axes, item) in enumerate(zip(panels, items)):
        sample = dataset[item]
        if "source_points" not in sample:
            raise ValueError(f"item {item} has no known matches")
        with torch.inference_mode():
            found = model.test_step(pseudo_collate([sample]))[0]
        there: Warp = found["there"]
        known = sample["source_points"]
        chosen = (
            known[np.linspace(0, len(known) - 1, min(LINES, len(known))).round().astype(int)] if len(known) else known
        )
        numbers = np.linspace(0, len(known) - 1, len(chosen)).round().astype(int)
        truth, put = sample["target_points"][numbers], there.at(chosen).cpu()
        colors = COLORS(np.linspace(0, 1, max(len(chosen), 1)))[: len(chosen)]
        _image(axes[0], sample["source"])
        axes[0].scatter(*chosen.T, s=11, c=colors, edgecolors="white", linewidths=0.4)
        _image(axes[1], sample["target"])
        axes[1].scatter(*truth.T, s=11, c=colors, edgecolors="white", linewidths=0.4)
        for (x, y), (u, v) in zip(truth.tolist(), put.tolist()):
            axes[1].plot([x, u], [y, v], color="#d7191c", linewidth=0.9)
        _image(axes[2], sample["source"], 0.45)
        _arrows(axes[2], there)
        warped = there.warped(sample["target"].to(there.shares)).cpu()
        _image(axes[3], warped.nan_to_num(255))
        error = (there.at(known).cpu() - sample["target_points"]).norm(dim=-1)
        said = f"{error.mean():.1f} pixels" if len(error) else "no match"
        if row == 0:
            titles = ("source", "target: truth, and the error in red", "flow", "target, warped to the source")
            for place, title in zip(axes, titles):
                place.set_title(title, fontsize=SMALL, color=INK)
        axes[1].text(
            0.01, 0.02, f"end-point error {said}", transform=axes[1].transAxes, fontsize=SMALL - 1, color="white",
            bbox=dict(facecolor="black", alpha=0.6, edgecolor="none", pad=1.5),
        )  # fmt: skip
    return figure


def draw_matches(
    source: np.ndarray,
    target: np.ndarray,
    pairs: Sequence[tuple[Sequence[float], Sequence[float], float]],
    places: np.ndarray,
    title: str = "",
) -> Figure:
    """Two images side by side with lines between matches, in colors of their confidence, the surest on top.

    Args:
        source, target: uint8 (H, W, 3), red, green, blue.
        pairs: (source [x, y], target [x, y], confidence), the surest first; the first `LINES` that are spread over the
            list get lines, all of them dots.
        places: (H, W, 2), as of `Warp.dense`; drawn as the target warped, below.
        title: line above.
    """
    figure = Figure((9.5, 6.2), dpi=110, layout="constrained")
    whole = figure.subplot_mosaic([["pair", "pair"], ["source", "warped"]], height_ratios=[1.15, 1])
    axes, gap = whole["pair"], 8
    height = max(len(source), len(target))
    shift = source.shape[1] + gap
    canvas = np.full((height, shift + target.shape[1], 3), 255, np.uint8)
    canvas[: len(source), : source.shape[1]], canvas[: len(target), shift:] = source, target
    _image(axes, canvas)
    step = max(1, -(-len(pairs) // LINES))
    for number in reversed(range(len(pairs))):
        (x, y), (u, v), confidence = pairs[number]
        color = COLORS(float(np.clip(confidence, 0, 1)))
        if number % step == 0:
            axes.plot([x, u + shift], [y, v], color=color, linewidth=0.8)
        axes.plot([x, u + shift], [y, v], ".", color=color, markersize=2.5)
    axes.set_title(title, fontsize=SMALL, color=INK, parse_math=False)
    _image(whole["source"], source)
    whole["source"].set_title("source", fontsize=SMALL, color=INK)
    _image(whole["warped"], _sampled(target, places))
    whole["warped"].set_title("target, warped to the source", fontsize=SMALL, color=INK)
    return figure


def _sampled(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The nearest pixels of an image at places (H, W, 2); white where they are NaN."""
    height, width = image.shape[:2]
    known = ~np.isnan(places[..., 0])
    found = np.full((*places.shape[:2], 3), 255, np.uint8)
    x, y = (np.clip(np.floor(places[known][:, a]).astype(int), 0, side - 1) for a, side in ((0, width), (1, height)))
    found[known] = image[y, x]
    return found


def _arrows(axes: Axes, there: Warp) -> None:
    height, width = there.frame.size
    columns = ARROWS
    rows = max(1, round(ARROWS * height / width))
    starts = there.frame.places(middles((rows, columns), there.shares).flatten(1).T)
    ends = there.at(starts)
    if there.other.size == there.frame.size:
        moves = ends - starts
    else:  # as if both had one size
        moves = there.frame.places(there.other.shares(ends)) - starts
    strength = there.confidence_at(starts).cpu().numpy()
    axes.quiver(
        *starts.cpu().numpy().T, *moves.cpu().numpy().T, strength, cmap="cividis", clim=(0, max(strength.max(), 1e-6)),
        angles="xy", scale_units="xy", scale=1, width=0.006,
    )  # fmt: skip


def _image(axes: Axes, image: np.ndarray | Tensor, strength: float = 1.0) -> None:
    """An image over the places that it covers, from (0, 0)."""
    pixels = (
        image.permute(1, 2, 0).float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image, np.float32)
    )
    pixels = 255 - strength * (255 - pixels)
    height, width = pixels.shape[:2]
    axes.imshow(pixels.clip(0, 255).astype(np.uint8), extent=(0, width, height, 0), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
