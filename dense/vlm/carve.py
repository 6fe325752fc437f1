"""CARVE: what a question makes a vision-language model look at, against what it looks at anyhow. Nothing is trained.

"Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning", arXiv 2509.06461;
https://github.com/YuyaoGe/CARVE.

Let Q[t, l] (N,) be the attention of the token that step t of the decoding predicts from, to the N vision tokens, by the
mean over the heads of layer l, under a question; and G[t, l] the same under a general instruction. The map is

    S = Σ_t w_t Σ_l spread(Q[t, l] / (G[t, l] + λ))

over the steps that both have, w_t = t + 1 ("all") or the first alone ("first"). Noise that multiplies both leaves the
quotient, so that what the question asks for is left. The region is what lies above a percentile of S, less its worst
parts; the image is cut to it, enlarged, and shown to the model beside the whole one.

`spread` is linear. So the sum is taken over tokens, and one map of pixels is made, not one for each step and layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ...data import one_of
from .views import View

GENERAL = "Write a general description of the image."
SUFFIX = "Answer the question using a single word or phrase."
LAYERS = tuple(range(20, 26))  # of decoders of 28 to 36 layers
LAMBDA = 1e-8
STEPS = ("all", "first")
PARTS = ("attention_sum", "size", "remove_small")


@dataclass(frozen=True)
class Variant:
    """A version of the method: which steps count, and which parts of a region are kept."""

    steps: str
    keep: str


VARIANTS = {
    "v1": Variant("first", "remove_small"),
    "v2": Variant("first", "size"),
    "v3": Variant("first", "attention_sum"),
    "v4": Variant("all", "attention_sum"),
}


def contrast(query: np.ndarray, general: np.ndarray, lam: float = LAMBDA) -> np.ndarray:
    """Q / (G + λ), float64.

    Args:
        query, general: attention under the question and under the general instruction, of one shape, at least 0.
        lam: λ, absolute. It matters where G is tiny: of half types 1e-8 is less than their rounding.

    Raises:
        ValueError: the shapes differ; a number is negative, NaN or infinite; λ is negative; Q / 0 with λ = 0.
    """
    query, general = (_checked(name, x) for name, x in (("query", query), ("general", general)))
    if query.shape != general.shape:
        raise ValueError(f"query of shape {query.shape} and general of shape {general.shape} must be of one shape")
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam={lam} must be a number of at least 0")
    if lam == 0 and not general.all():
        raise ValueError("lam=0 needs a general attention that is nowhere 0")
    return query / (general + lam)


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all() or (found < 0).any():
        raise ValueError(f"{name}: attention must be finite numbers of at least 0")
    return found


def fuse(
    query: np.ndarray,
    general: np.ndarray,
    views: Sequence[View],
    size: tuple[int, int],
    layers: Sequence[int] | None = None,
    steps: str = "all",
    lam: float = LAMBDA,
) -> np.ndarray:
    """The map S of the contrast over the image.

    Args:
        query: attention (T1, L, N) of T1 steps and L layers to N vision tokens under the question.
        general: the same (T2, L, N) under the general instruction; the steps that both have count.
        views: where the tokens lie; the maps of several views are added.
        size: height and width of the image.
        layers: the ones to add, of the L; those beyond L are left out. All by default.
        steps: "all", weighted with their number from 1, or "first".
        lam: λ, as of `contrast`.

    Returns:
        S (H, W), float64. Pixels that no view shows are 0.

    Raises:
        ValueError: shapes do not fit; no layer or no step is left; a view names a token that is not there.
    """
    one_of("steps", steps, STEPS)
    if query.ndim != 3 or general.ndim != 3 or query.shape[1:] != general.shape[1:]:
        raise ValueError(
            f"query {query.shape} and general {general.shape} must be of shape (steps, layers, tokens), the latter two "
            "the same"
        )
    depth, count = query.shape[1:]
    chosen = list(range(depth)) if layers is None else [layer for layer in layers if 0 <= layer < depth]
    many = min(len(query), len(general), 1 if steps == "first" else max(len(query), len(general)))
    if not chosen or not many:
        raise ValueError(f"layers={layers}: {depth} layers and {many} steps of both leave nothing to add")
    if not views or any(view.tokens.max() >= count for view in views):
        raise ValueError(f"views must be of the {count} vision tokens that the attention has")
    found = contrast(query[:many, chosen], general[:many, chosen], lam)
    tokens = np.tensordot(np.arange(1, many + 1), found.sum(1), 1)
    return np.sum([view.spread(tokens, size) for view in views], axis=0)


def is_flat(fused: np.ndarray, least: float = 1e-4) -> bool:
    """Whether numbers of S, of any shape, have no region: their range is at most `least` of the greatest. So it is
    where question and instruction look alike; what lies above a percentile then is rounding."""
    return bool(fused.max() - fused.min() <= least * np.abs(fused).max())


def region(
    fused: np.ndarray,
    top_percent: float = 0.2,
    keep: str = "attention_sum",
    min_keep_regions: int = 3,
    outlier_percent: float = 0.1,
) -> np.ndarray:
    """The mask of the pixels that matter, bool (H, W).

    Args:
        fused: S (H, W).
        top_percent: share of the pixels above the threshold, in (0, 1].
        keep: which of their connected parts (by sides) stay: "size", the largest; "attention_sum", those with the
            largest sums of S; both the best max(`min_keep_regions`, int(number * `top_percent`)), of equals the upper;
            or "remove_small", those of at least int(pixels above * `outlier_percent` / 100).
        min_keep_regions: least number of parts that stay.
        outlier_percent: least size of a part, in percent of all pixels above the threshold.

    Raises:
        ValueError: the map is empty or not finite; an option is out of its range.
    """
    one_of("keep", keep, PARTS)
    if fused.ndim != 2 or not fused.size or not np.isfinite(fused).all():
        raise ValueError(f"fused must be finite numbers (H, W), got shape {fused.shape}")
    if not 0 < top_percent <= 1:
        raise ValueError(f"top_percent={top_percent} must be a share above 0, at most 1")
    if min_keep_regions < 1 or not 0 <= outlier_percent <= 100:
        raise ValueError(
            f"min_keep_regions={min_keep_regions} is at least 1, outlier_percent={outlier_percent} 0 to 100"
        )
    mask = fused >= np.percentile(fused, (1 - top_percent) * 100)
    number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    parts, first = np.unique(labels, return_index=True)
    parts = parts[np.argsort(first)]  # from the top
    parts = parts[parts > 0]
    sizes = np.bincount(labels.ravel(), minlength=number)[parts]
    if keep == "remove_small":
        kept = parts[sizes >= int(mask.sum() * outlier_percent / 100)]
    else:
        score = sizes if keep == "size" else np.bincount(labels.ravel(), fused.ravel(), number)[parts]
        many = max(min_keep_regions, int(len(parts) * top_percent))
        kept = parts[np.argsort(-score, kind="stable")[:many]]
    return np.isin(labels, kept)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels of a mask (H, W), x1 and y1 exclusive; of an empty mask the whole image."""
    if not mask.any():
        return 0, 0, mask.shape[1], mask.shape[0]
    (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    return x0, y0, x1 + 1, y1 + 1


def refine(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, black outside the mask, cut to the mask's box and enlarged: uint8 (h, w, 3).

    The sides of the box grow by one factor, so that both reach those of the image at least; one may exceed it.

    Args:
        image: uint8 (H, W), (H, W, 3) or (H, W, 4); grey is given three times, opacity is dropped.
        mask: bool (H, W).
    """
    if image.dtype != np.uint8 or image.shape[:2] != mask.shape:
        raise ValueError(f"image of {image.dtype} {image.shape} must be uint8 of the mask's {mask.shape}")
    pixels = np.asarray(Image.fromarray(image).convert("RGB")) * mask[..., None].astype(np.uint8)
    x0, y0, x1, y1 = bounding_box(mask)
    (height, width), crop = mask.shape, Image.fromarray(pixels[y0:y1, x0:x1])
    factor = max(width / crop.width, height / crop.height)
    size = int(crop.width * factor), int(crop.height * factor)
    return np.asarray(crop.resize(size, Image.Resampling.LANCZOS))


@dataclass
class Carved:
    """What `carve` found."""

    image: np.ndarray  # uint8 (H, W, 3)
    query: np.ndarray  # attention (T1, L, N)
    general: np.ndarray  # (T2, L, N)
    views: Sequence[View]
    fused: np.ndarray  # S (H, W), float64
    flat: bool  # whether S has no region, and the whole image stays
    mask: np.ndarray  # bool (H, W)
    refined: np.ndarray  # uint8 (h, w, 3): masked, cut out, enlarged; the image where S is flat

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
        return bounding_box(self.mask)


def carve(
    image: np.ndarray,
    query: np.ndarray,
    general: np.ndarray,
    views: Sequence[View],
    variant: str = "v4",
    layers: Sequence[int] | None = None,
    lam: float = LAMBDA,
    top_percent: float = 0.2,
    min_keep_regions: int = 3,
    outlier_percent: float = 0.1,
    least_range: float = 1e-4,
) -> Carved:
    """From attention to the refined image.

    Args:
        image: uint8 (H, W, 3).
        query, general, views, layers, lam: as of `fuse`.
        variant: of VARIANTS.
        top_percent, min_keep_regions, outlier_percent: as of `region`.
        least_range: range of S over its maximum from which it has a region, else the whole image stays; 0 to cut out a
            region even of noise, as the released code does.
    """
    version = VARIANTS[one_of("variant", variant, tuple(VARIANTS))]
    fused = fuse(query, general, views, image.shape[:2], layers, version.steps, lam)
    mask = region(fused, top_percent, version.keep, min_keep_regions, outlier_percent)
    shown = np.logical_or.reduce([view.shown(fused.shape) for view in views])
    if flat := least_range > 0 and is_flat(fused[shown], least_range):
        mask = np.ones_like(mask)
    return Carved(image, query, general, views, fused, flat, mask, image if flat else refine(image, mask))


def entropy(attention: np.ndarray) -> np.ndarray:
    """How spread an attention to vision tokens is, in nats: -Σ p ln p of p = a / Σ a over the last axis; from 0, of one
    token, to ln N, of N alike. It measures how complex an image is to the model.

    The paper speaks of it, and the released code has no such function: the formula is the standard one.

    Raises:
        ValueError: a number is negative, NaN or infinite; a row is 0 throughout.
    """
    found = _checked("attention", attention)
    total = found.sum(-1, keepdims=True)
    if not found.shape[-1] or not total.all():
        raise ValueError("attention: a row of zeros, or of no tokens, has no entropy")
    share = found / total
    return -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
