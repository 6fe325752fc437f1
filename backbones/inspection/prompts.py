"""Which prompts the tokens of images pick in a TCPA, and a picture of it."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..tcpa import TCPA

# Of the groups that most patches pick first; further ones are gray. By Okabe and Ito, for all kinds of eyes.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GRAY = "#B0B0B0"


class Picks(NamedTuple):
    """The groups of prompts that the tokens of an image pick in a block. What is of a pool without groups is None.

    Attributes:
        class_cosines: (S,), of the class token and the keys of its pool.
        class_groups: (k,), that it picks, the nearest first.
        cosines: (H, W, S), of patches and the keys of their pool.
        groups: (H, W, k), that they pick, the nearest first.
    """

    class_cosines: Tensor | None
    class_groups: Tensor | None
    cosines: Tensor | None
    groups: Tensor | None

    def shares(self) -> Tensor | None:
        """The share of the patches that pick each group, (S,): k in all."""
        if self.cosines is None or self.groups is None:
            return None
        counts = torch.bincount(self.groups.flatten(), minlength=self.cosines.shape[-1])
        return counts / self.groups[..., 0].numel()


@torch.no_grad()
def look(network: TCPA, image: Tensor, block: int = -1) -> Picks:
    """What the tokens of an image pick.

    Args:
        network: in inference mode.
        image: (1, 3, H, W), normalized.
        block: number of the block, from 0; negative ones count from the last.

    Raises:
        ValueError: there is no such block, or nothing is picked.
    """
    pools, blocks = network.pools, network.blocks
    if not -len(blocks) <= block < len(blocks):
        raise ValueError(f"block={block}: there are {len(blocks)} blocks")
    if pools is None or network.coordination != "matched":
        option = "class_pool=0, image_pool=0" if pools is None else f"coordination={network.coordination!r}"
        raise ValueError(f"tokens pick no prompts with {option}")
    block %= len(blocks)
    found: dict[str, Any] = {}
    handle = blocks[block].register_forward_pre_hook(lambda _, inputs: found.update(inputs=inputs))
    try:
        next(itertools.islice(network.levels(network.check(image), {}), block, None))
    finally:
        handle.remove()
    x, tokens, *_ = found["inputs"]
    picked: list[Tensor | None] = []
    for pool, rows, topk in zip((pools.of_class, pools.of_image), (tokens[0, 0], x[0].permute(1, 2, 0)), pools.topk):
        picked += (None, None) if pool is None else pool.nearest(block, rows, topk)
    return Picks(*picked)


def draw(pixels: np.ndarray, seen: Picks, patch: int, title: str = "", others: Iterable[Picks] = ()) -> Figure:
    """Above: the image, and the group that each patch picks first, with its cosine. Below: the cosines of the class
    token and the keys of its pool, what it picks dark; and how many of the patches pick each group, over all images.

    Args:
        pixels: image (H, W, 3), uint8.
        seen: what its tokens pick.
        patch: side of a patch in pixels.
        title: text above all panels.
        others: what the tokens of further images pick.
    """
    height, width = pixels.shape[:2]
    canvas = Figure((3 * 4.2, 4.2 * height / width + 2.8), layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10)
    above, below = canvas.subfigures(2, 1, height_ratios=(4.2 * height / width + 0.4, 2.4))  # type: ignore[misc]
    left, middle, right = above.subplots(1, 3)
    for axes in (left, middle, right):
        axes.set_axis_off()
    left.imshow(pixels)
    of_class, of_image = below.subplots(1, 2)
    if seen.class_cosines is None or seen.class_groups is None:
        _say(of_class, "no class prompts")
    else:
        picked = np.isin(np.arange(len(seen.class_cosines)), seen.class_groups.numpy())
        _bars(of_class, seen.class_cosines.numpy(), ["#333333" if one else GRAY for one in picked])
        of_class.set_title(f"class token: cosine with each of {len(picked)} keys, its {picked.sum()} picks dark")
    shares = seen.shares()
    if seen.cosines is None or seen.groups is None or shares is None:
        for axes in (middle, right, of_image):
            _say(axes, "no image prompts")
    else:
        rows, columns, count = seen.cosines.shape
        left.set_title(f"{rows} x {columns} patches")
        first, picks = seen.groups[..., 0].numpy(), seen.groups.shape[-1]
        order = np.argsort(-np.bincount(first.ravel(), minlength=count), kind="stable")
        tints = np.full(count, GRAY, dtype=object)
        tints[order[: len(COLORS)]] = COLORS[:count]
        extent = (-0.5, columns * patch - 0.5, rows * patch - 0.5, -0.5)
        colors = np.array([[int(tint[i : i + 2], 16) for i in (1, 3, 5)] for tint in tints], np.uint8)
        middle.imshow(colors[first], extent=extent)
        middle.set_title("the group that each patch picks first")
        side = 72 * 4.2 / max(columns, 1)  # of a patch in points, about
        for (row, column), group in np.ndenumerate(first):
            at = (column + 0.5) * patch - 0.5, (row + 0.5) * patch - 0.5
            ink = "white" if colors[group] @ (0.3, 0.6, 0.1) < 120 else "black"
            middle.text(*at, str(group), ha="center", va="center", fontsize=min(9, 0.4 * side), color=ink)
        nearest = seen.cosines.max(-1).values.numpy()
        shown = right.imshow(nearest, cmap="inferno", extent=extent)
        right.set_title("its cosine with the key of that group")
        above.colorbar(shown, cax=right.inset_axes((1.015, 0, 0.03, 1))).ax.tick_params(labelsize=7)
        for axes in (middle, right):  # without what filling up the image has added
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_ylim(height - 0.5, -0.5)
        all_shares = [shares, *(other.shares() for other in others)]
        mean = torch.stack([share for share in all_shares if share is not None]).mean(0)
        _bars(of_image, 100 * mean.numpy(), list(tints))
        of = "" if len(all_shares) == 1 else f" of {len(all_shares)} images"
        of_image.set_title(f"% of the patches{of} that pick each group, {picks} of {count}")
        of_image.set_ylim(0, 100)
    for axes in (left, middle, right, of_class, of_image):
        axes.title.set_fontsize(9)
    return canvas


def _bars(axes: Axes, heights: np.ndarray, colors: list[str]) -> None:
    axes.bar(np.arange(len(heights)), heights, color=colors)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(np.arange(0, len(heights), max(1, -(-len(heights) // 24))))
    axes.set_xlabel("group", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9)
