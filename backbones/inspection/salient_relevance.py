"""Salient Relevance (SR): attention areas from the isolated pixels of a relevance map, by context-aware saliency.

    found = salient_relevance(network, images, logit(3))
    found.map[0]            # (H, W), float64 in [0, 1)
    print(found.relevance)  # the sum of the relevance beside the score

A pixel is salient if its patch is unlike all others of the image, and more so unlike near ones:

    d(p, q) = color(p, q) / (1 + c position(p, q))
    S_r = 1 - exp(-mean of the K smallest d),   S = mean of S_r over the scales r, brought to the size of the image
    SR = S (1 - distance to the nearest focus / the largest such distance),   foci: S > threshold max S

`color` is the Euclidean distance of the patches' values over the root of their number, `position` that of the places
over the longer side of their grids. The candidates q are patches of the image at r, r/2 and r/4, a half patch apart.

Distances are computed for a tile of pixels at a time: memory is of (tile, candidates), not of (pixels, candidates).

Sources: "Beyond saliency", arXiv 1712.08268 (Hey1Li/Salient-Relevance-Propagation, which has the relevance alone);
context-aware saliency, Goferman, Zelnik-Manor and Tal, CVPR 2010. What the papers leave open is inference, and an
option of `Context` where a number: channels scaled to [0, 1] one by one, no L*a*b*, the same patch at all scales,
bilinear resizing without smoothing, borders that repeat, and a pixel's own patch among its candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from .relevance import PAPER, Relevance, Rules, propagate


@dataclass(frozen=True)
class Context:
    """Numbers of context-aware saliency.

    Args:
        patch: side of a patch, odd (7).
        nearest: number K of the most alike candidates (64; all, where there are fewer).
        position: weight c of the distance between places (3).
        scales: sides of the image over the whole one, in (0, 1].
        ratios: sides of the candidates' image over that of a scale, in (0, 1].
        smallest: least side of the candidates' image over the whole one (0.2).
        threshold: share of the largest saliency above which pixels are foci, in [0, 1).
        longest: longer side that an image is brought down to before; None for none. 250 was published.
        tile: number of distances held at a time.
    """

    patch: int = 7
    nearest: int = 64
    position: float = 3.0
    scales: Sequence[float] = (1.0, 0.8, 0.5, 0.3)
    ratios: Sequence[float] = (1.0, 0.5, 0.25)
    smallest: float = 0.2
    threshold: float = 0.8
    longest: int | None = None
    tile: int = 2**20

    def __post_init__(self):
        if self.patch < 1 or self.patch % 2 == 0:
            raise ValueError(f"patch={self.patch} must be odd, at least 1")
        for name in ("nearest", "tile"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest={self.longest} must be at least 1, or None")
        if not 0 <= self.position < float("inf"):
            raise ValueError(f"position={self.position} must be a finite number of at least 0")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} must be at least 0 and below 1")
        for name in ("scales", "ratios"):
            values = getattr(self, name)
            if not values or not all(0 < value <= 1 for value in values):
                raise ValueError(f"{name}={values} must be numbers above 0, at most 1")
        for scale in self.scales:
            if not any(scale * ratio >= self.smallest for ratio in self.ratios):
                raise ValueError(f"smallest={self.smallest} leaves no candidates at scale {scale}")


DEFAULT = Context()


@dataclass
class Saliency:
    """Of one image (H, W): `scales` (number of scales, H, W), their mean, and the map after the foci; float64."""

    scales: np.ndarray
    mean: np.ndarray
    map: np.ndarray


@dataclass
class SalientRelevance:
    """`map` and `mean` (B, H, W), float64; `relevance` of the inputs, signed."""

    map: Tensor
    mean: Tensor
    relevance: Relevance


def salient_relevance(
    network: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    score: Callable[[Any], Tensor],
    rules: Rules = PAPER,
    context: Context = DEFAULT,
) -> SalientRelevance:
    """The SR maps of images.

    Args:
        network, inputs, score, rules: as of `propagate`; the first input is the images (B, C, H, W).
        context: numbers of the saliency. An image of 224 x 224 takes about half a minute of a CPU's core; `longest`
            makes it less.

    Raises:
        ValueError: as `propagate` has it, or the first input is no batch of images.
    """
    relevance = propagate(network, inputs, score, rules)
    of_images = relevance.inputs[0]
    if of_images is None or of_images.ndim != 4:
        raise ValueError("the first input must be images (B, C, H, W) of floating point")
    found = [context_saliency(x.abs().permute(1, 2, 0).cpu().numpy(), context) for x in of_images]
    map, mean = (torch.from_numpy(np.stack([getattr(x, name) for x in found])) for name in ("map", "mean"))
    return SalientRelevance(map, mean, relevance)


def as_picture(relevance: Tensor) -> np.ndarray:
    """Relevance (B, C, H, W) as pictures (B, H, W, C), uint8: absolute values, scaled by each image's range."""
    x = relevance.detach().abs().double().cpu()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    x = (x - low) / torch.where(high > low, high - low, torch.ones_like(high))
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw(pixels: Sequence[np.ndarray], found: SalientRelevance, titles: Sequence[str]) -> Figure:
    """A row for each image: the image, its relevance with the sum beside the score, and the SR map over the image.

    Relevance is summed over channels; orange speaks for the score, blue against it, on one scale for the row.

    Args:
        pixels: images (H, W, 3), uint8, of the size that the network saw.
        found: what `salient_relevance` gave for them.
        titles: what is explained of each.
    """
    figure = Figure(figsize=(9.6, 3.3 * len(pixels)), layout="constrained")
    rows = figure.subplots(len(pixels), 3, squeeze=False)
    of_images = found.relevance.inputs[0]
    assert of_images is not None
    relevance, maps = of_images.sum(1).cpu().numpy(), found.map.numpy()
    sums, scores = found.relevance.sums.tolist(), found.relevance.scores.tolist()
    for i, (image, axes) in enumerate(zip(pixels, rows)):
        most = float(np.quantile(np.abs(relevance[i]), 0.995)) or 1.0
        axes[0].imshow(image)
        axes[0].set_title(titles[i])
        axes[1].imshow(relevance[i], cmap="PuOr_r", vmin=-most, vmax=most)
        axes[1].set_title(f"relevance: sum {sums[i]:.3g}, score {scores[i]:.3g}")
        axes[2].imshow(image.mean(2), cmap="gray", vmin=-120, vmax=255)
        shown = axes[2].imshow(maps[i], cmap="inferno", alpha=0.65, vmin=0)
        axes[2].set_title("Salient Relevance")
        figure.colorbar(shown, ax=axes[2], shrink=0.75)
        for place in axes:
            place.set_axis_off()
    return figure


def context_saliency(image: np.ndarray, context: Context = DEFAULT) -> Saliency:
    """Context-aware saliency of an image (H, W, C) of any floats.

    Raises:
        ValueError: another shape, an empty image, or values that are NaN or infinite.
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image must be (H, W, C), none of them 0, got shape {image.shape}")
    if not np.isfinite(image).all():
        raise ValueError("image has values that are NaN or infinite")
    height, width = image.shape[:2]
    low, high = image.min((0, 1)), image.max((0, 1))
    image = (image - low) / np.where(high > low, high - low, 1.0)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    if context.longest is not None and max(height, width) > context.longest:
        share = context.longest / max(height, width)
        x = _resize(x, [max(1, round(n * share)) for n in (height, width)])
    scales = torch.cat([_resize(_of_scale(x, scale, context), (height, width)) for scale in context.scales])[:, 0]
    mean = scales.mean(0).numpy()
    return Saliency(scales.numpy(), mean, mean * (1 - _distance_to_foci(mean, context.threshold)))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=False)


def _scaled(x: Tensor, share: float) -> Tensor:
    return _resize(x, [max(1, round(n * share)) for n in x.shape[-2:]])


def _patches(x: Tensor, side: int, step: int) -> tuple[Tensor, Tensor]:
    """Patches (N, values) around every `step`-th pixel, and their places (N, 2) over the longer side of the grid."""
    height, width = x.shape[-2:]
    padded = F.pad(x, [side // 2] * 4, mode="replicate")
    rows = F.unfold(padded, side, stride=step)[0].T.contiguous()
    places = torch.meshgrid(
        torch.arange(0, height, step, dtype=x.dtype), torch.arange(0, width, step, dtype=x.dtype), indexing="ij"
    )
    return rows, (torch.stack(places, -1).reshape(-1, 2) + 0.5) / max(height, width)


def _of_scale(x: Tensor, scale: float, context: Context) -> Tensor:
    """S_r (1, 1, h, w)."""
    at_scale = _scaled(x, scale)
    pixels, places = _patches(at_scale, context.patch, 1)
    step = max(1, context.patch // 2)
    kept = [ratio for ratio in context.ratios if scale * ratio >= context.smallest]
    found = [_patches(_scaled(at_scale, ratio), context.patch, step) for ratio in kept]
    candidates, their_places = (torch.cat(parts) for parts in zip(*found))
    nearest = min(context.nearest, len(candidates))
    root = pixels.shape[1] ** 0.5
    values = []
    for start in range(0, len(pixels), max(1, context.tile // len(candidates))):
        part = slice(start, start + max(1, context.tile // len(candidates)))
        color = _distances(pixels[part], candidates) / root
        apart = torch.cdist(places[part], their_places, compute_mode="donot_use_mm_for_euclid_dist")
        distance = color / (1 + context.position * apart)
        values.append(1 - torch.exp(-distance.topk(nearest, largest=False, sorted=False)[0].mean(1)))
    return torch.cat(values).view(1, 1, *at_scale.shape[-2:])


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances: by products of matrices, and exact where these would cancel."""
    squares = rows.square().sum(1)[:, None] + others.square().sum(1)
    found = (squares - 2 * rows @ others.T).clamp(min=0)
    near = (found < 1e-7 * squares.clamp(min=1e-300)).nonzero()
    for start in range(0, len(near), 2**14):
        row, other = near[start : start + 2**14].unbind(1)
        found[row, other] = (rows[row] - others[other]).square().sum(1)
    return found.sqrt()


def _distance_to_foci(saliency: np.ndarray, threshold: float) -> np.ndarray:
    """Over the largest such distance; 0 where there are no foci, or nothing else."""
    outside = ~(saliency > threshold * saliency.max())
    if outside.all() or not outside.any():
        return np.zeros_like(saliency)
    distance = cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    return distance / distance.max()
